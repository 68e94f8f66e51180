"""Make an untrained exit head from a target's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.architectures import check_head
from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.config import ExitHeadConfig, HeadType, Target
from vllm_ppsd.exit_head.dequantise import dequantised
from vllm_ppsd.exit_head.fingerprint import describe_target
from vllm_ppsd.exit_head.target_files import model_folder, weight_files
from vllm_ppsd.files import open_tensors

FINAL_NORM = "model.norm.weight"


def init_head(
    model: str,
    output: str | Path,
    *,
    exit_layer: int,
    head_type: HeadType = "lens",
    num_layers: int = 1,
    steps: int = 1,
    draft_token_ids: list[int] | None = None,
) -> ExitHeadConfig:
    """Write an untrained head, of ``initial_tensors``.

    Raises:
        ExitHeadError: the target lacks what is needed, or ``output`` exists.
    """
    config = head_config(
        describe_target(model_folder(model)),
        exit_layer=exit_layer,
        head_type=head_type,
        num_layers=num_layers,
        steps=steps,
        draft_vocab_size=None if draft_token_ids is None else len(draft_token_ids),
    )
    tensors = initial_tensors(model, config)
    if draft_token_ids is not None:
        tensors["draft_token_ids"] = torch.tensor(draft_token_ids, dtype=torch.int64)
    save(output, config, tensors)
    return config


def head_config(
    target: Target,
    *,
    exit_layer: int,
    head_type: HeadType,
    num_layers: int = 1,
    start_layer: int | None = None,
    output_map: bool = False,
    draft_vocab_size: int | None = None,
    deeper_layers: Sequence[int] = (),
    steps: int = 1,
) -> ExitHeadConfig:
    """Return the config of a head for ``target``; ``lens`` heads have no layers to number.

    Raises:
        ExitHeadError: the target takes no such heads.
    """
    check_head(target.architecture, head_type)
    return ExitHeadConfig(
        head_type=head_type,
        exit_layer=exit_layer,
        num_layers=num_layers if head_type == "transformer" else 0,
        start_layer=start_layer,
        output_map=output_map,
        draft_vocab_size=draft_vocab_size,
        deeper_layers=list(deeper_layers),
        steps=steps,
        target=target,
    )


def initial_tensors(model: str, config: ExitHeadConfig) -> dict[str, torch.Tensor]:
    """Return the weights that an untrained head starts from.

    The final norm is the target's own, the output map the identity, what the input map
    adds zero. A ``transformer`` head starts from the target's layers behind
    ``first_layer``; the projections of deeper states and the fusion of continuations are zero.

    Raises:
        ExitHeadError: the target holds no final norm, or is quantised in a way that nothing
            here undoes.
    """
    folder = model_folder(model)
    hidden = config.target.hidden_size
    norm = read_tensors(folder, FINAL_NORM)
    if FINAL_NORM not in norm:
        raise ExitHeadError(f"the target {folder} holds no tensor {FINAL_NORM}")
    tensors = {"norm.weight": norm[FINAL_NORM]}
    dtype = tensors["norm.weight"].dtype
    if config.output_map:
        tensors["map.weight"] = torch.eye(hidden, dtype=dtype)
        tensors["map.bias"] = torch.zeros(hidden, dtype=dtype)
    if config.start_layer is not None:
        tensors["input_map.weight"] = torch.zeros(hidden, hidden, dtype=dtype)
        tensors["input_map.bias"] = torch.zeros(hidden, dtype=dtype)
    tensors |= zero_maps(config, dtype)
    for index in range(config.num_layers):
        source = f"model.layers.{config.source_layer(index)}."
        tensors |= {
            f"layers.{index}.{name.removeprefix(source)}": tensor
            for name, tensor in read_tensors(folder, source).items()
        }
    return tensors


def zero_maps(config: ExitHeadConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the maps that a head may gain later, all zero.

    They are a multi-depth head's projections of deeper states, and the fusion that a head with
    continuations goes on by.
    """
    hidden = config.target.hidden_size
    maps = {
        f"deeper_{end}.{index}.weight": torch.zeros(hidden, hidden, dtype=dtype)
        for index in range(len(config.deeper_layers))
        for end in ("in", "out")
    }
    if config.steps > 1:
        maps["fuse.weight"] = torch.zeros(hidden, 2 * hidden, dtype=dtype)
        maps["fuse.bias"] = torch.zeros(hidden, dtype=dtype)
    return maps


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return a model folder's tensors whose names start with ``prefix``, as floats.

    Raises:
        ExitHeadError: they are quantised in a way that nothing here undoes.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with open_tensors(path, ExitHeadError) as file:
            tensors |= {n: file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}
    return dequantised(folder, tensors)
