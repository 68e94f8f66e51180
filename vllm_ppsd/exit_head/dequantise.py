"""Floats from a quantised target's tensors: an exit head holds nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.target_files import read_model_config

_BLOCK_SCALE = ".weight_scale_inv"


def dequantised(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of a model as floats, under the names that they have in floats.

    Args:
        folder: the model's.
        tensors: by name; all of a module that is quantised.

    Returns:
        What was quantised in bfloat16, the rest as it was.

    Raises:
        ExitHeadError: they are quantised in a way that nothing here undoes.
    """
    config = read_model_config(folder).get("quantization_config")
    if not config:
        return tensors
    method = config.get("quant_method")
    floats = _converted(folder, method, config, tensors)
    # What is left are scales of activations: the head's are floats, too.
    floats = {name: t for name, t in floats.items() if not name.endswith("_scale")}
    for name, tensor in floats.items():
        if not holds_floats(tensor):
            raise ExitHeadError(
                f"the target {folder} is quantised by {method}, and the exit head needs its "
                f"tensor {name} as floats, which only compressed-tensors and block-wise fp8 can "
                "be turned into; use the target unquantised or quantised like that"
            )
    return floats


def holds_floats(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are what it stands for; a quantised one's want a scale."""
    return tensor.is_floating_point() and tensor.element_size() > 1


def _converted(
    folder: Path, method: str | None, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors with those of a known method turned into floats."""
    # vLLM requires the package, but serving an unquantised target does without.
    from compressed_tensors.entrypoints import convert

    converter: Any = None
    if method == "compressed-tensors":
        converter = convert.CompressedTensorsDequantizer(folder)
    blocks = [name.removesuffix(_BLOCK_SCALE) for name in tensors if name.endswith(_BLOCK_SCALE)]
    if method == "fp8" and blocks:
        converter = convert.FP8BlockDequantizer(
            targets=blocks, weight_block_size=config["weight_block_size"]
        )
    return dict(tensors) if converter is None else converter.process(dict(tensors))
