"""Load an exit head's tensors, and the LM head that it shares with the target, into vLLM layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.dequantise import dequantised, holds_floats
from vllm_ppsd.exit_head.int8 import Int8LMHead, runs_in_int8
from vllm_ppsd.exit_head.target_files import model_folder

_QKV = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}


def load_tensors(
    head: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    packed: Mapping[str, Sequence[str]],
) -> None:
    """Copy ``tensors`` into ``head``, packing projections as the target does.

    Args:
        head: the exit head.
        tensors: checkpoint tensors by name.
        packed: the target's ``packed_modules_mapping``.

    Raises:
        ExitHeadError: names the tensor without a place, the parameter without a
            tensor, or the one whose shape does not fit.
    """
    parameters = dict(head.named_parameters())
    filled: set[str] = set()
    for name, tensor in tensors.items():
        parameter_name, shard = _destination(name, packed)
        parameter = parameters.get(parameter_name)
        if parameter is None:
            raise ExitHeadError(
                f"the exit head holds a tensor {name} that the target's layer has no place for"
            )
        loader = getattr(parameter, "weight_loader", default_weight_loader)
        try:
            if shard is None:
                loader(parameter, tensor)
            else:
                loader(parameter, tensor, shard)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ExitHeadError(
                f"the exit head's tensor {name} of shape {tuple(tensor.shape)} does not fit "
                f"the target's layer: {error}"
            ) from error
        filled.add(parameter_name)
    missing = sorted(set(parameters) - filled)
    if missing:
        raise ExitHeadError(f"the exit head misses tensors for {', '.join(missing)}")


def load_lm_head(
    config: ExitHeadConfig,
    vllm_config: VllmConfig,
    inner: Any,
    draft_token_ids: torch.Tensor | None,
) -> nn.Module:
    """Return the target's LM head, shared if tied, else loaded, cut to the draft vocabulary.

    What is not shared is in int8 where ``runs_in_int8`` says so. Called on the device and in the
    dtype that it is to have.

    Args:
        inner: the target's decoder (``model.model``).
        draft_token_ids: int64 [draft vocabulary], or None for the whole vocabulary.

    Raises:
        ExitHeadError: it is untied, and the target's checkpoint holds none.
    """
    model_config = vllm_config.model_config
    tied = bool(model_config.hf_text_config.tie_word_embeddings)
    if tied and draft_token_ids is None:
        embedding: nn.Module = inner.embed_tokens
        return embedding
    if tied:
        embeddings = tensor_model_parallel_all_gather(inner.embed_tokens.weight, dim=0)
        weight = embeddings[: config.target.vocab_size]
    else:
        weight = _untied_lm_head(vllm_config)
    if draft_token_ids is not None:
        weight = weight[draft_token_ids.to(weight.device)]
    lm_head = ParallelLMHead(weight.shape[0], config.target.hidden_size)
    lm_head.weight_loader(lm_head.weight, weight)
    if runs_in_int8(model_config.dtype):
        lm_head.quant_method = Int8LMHead()
    process_weights_after_loading(lm_head, model_config, lm_head.weight.device)
    return lm_head


def _untied_lm_head(vllm_config: VllmConfig) -> torch.Tensor:
    """Return the LM head, [vocabulary, hidden], from the target's checkpoint."""
    model_config = vllm_config.model_config
    loader = get_model_loader(vllm_config.load_config)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in loader.get_all_weights(model_config, nn.Module()):
        if name.startswith("lm_head."):
            stored[name] = tensor
        if name == "lm_head.weight" and holds_floats(tensor):
            break
    folder = model_folder(
        model_config.model, model_config.revision, vllm_config.load_config.download_dir
    )
    floats = dequantised(folder, stored)
    if "lm_head.weight" not in floats:
        raise ExitHeadError(f"the target {model_config.model} holds no tensor lm_head.weight")
    return floats["lm_head.weight"].to(model_config.dtype)


def _destination(name: str, packed: Mapping[str, Sequence[str]]) -> tuple[str, str | int | None]:
    """Return the parameter that a tensor goes into, and its shard there.

    A tensor that the target's checkpoint holds packed already, under the parameter's own name,
    is all of it.
    """
    parts = name.split(".")
    for packed_name, members in packed.items():
        for index, member in enumerate(members):
            if member in parts and member != packed_name:
                place = parts.index(member)
                shard: str | int = _QKV.get(member, index)
                return ".".join([*parts[:place], packed_name, *parts[place + 1 :]]), shard
    return name, None
