"""Build an exit head in vLLM layers from its folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.continuation import Continuation
from vllm_ppsd.exit_head.loading import load_lm_head, load_tensors
from vllm_ppsd.exit_head.module import ExitHead

logger = init_logger("vllm.plugins.ppsd")

COMPILE_TAG = "ppsd_exit_head"
"""Names the head's compiled graphs in vLLM's log and cache."""


def build_exit_head(
    path: str, vllm_config: VllmConfig, model: nn.Module, goes_on: bool
) -> tuple[ExitHead, Continuation | None]:
    """Build the head in ``path`` for a target whose stage 0 is ``model``.

    Args:
        path: of a head's folder.
        vllm_config: the target's vLLM config.
        model: the target, or stage 0's part of it.
        goes_on: whether continuations are wanted, of a head that has them.

    Returns:
        The head, and how it goes on, if it does.

    Raises:
        ExitHeadError: the target's layers are of an unknown make, or the head's
            tensors do not fit them.
    """
    folder = ExitHeadFolder.open(path)
    config = folder.config
    model_config = vllm_config.model_config
    inner: Any = model.model
    tensors = folder.tensors()
    device = torch.device(vllm_config.device_config.device or "cpu")
    with (
        set_current_vllm_config(vllm_config),
        set_default_torch_dtype(model_config.dtype),
        device,
    ):
        lm_head = load_lm_head(config, vllm_config, inner, tensors.get("draft_token_ids"))
        with set_model_tag(COMPILE_TAG):
            head = ExitHead(
                vllm_config=vllm_config,
                config=config,
                layer=inner.layers[0],
                lm_head=lm_head,
            )
        load_tensors(head, tensors, getattr(model, "packed_modules_mapping", {}))
        process_weights_after_loading(head, model_config, device)
        continuation = None
        if goes_on and config.steps > 1:
            # An adapter around the embedding would go by the rows of a pass.
            embedding = getattr(inner.embed_tokens, "base_layer", inner.embed_tokens)
            with set_model_tag(f"{COMPILE_TAG}_continuation"):
                continuation = Continuation(
                    vllm_config=vllm_config, head=head, embedding=embedding
                ).eval()
    logger.info("PPSD: exit head %s (%s) loaded", folder.path, config.head_type)
    return head.eval(), continuation
