"""Tiny models quantised by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}
FP8_BLOCK = 64
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}


def quantise(model: Path, folder: Path, config: dict[str, Any]) -> Path:
    """Write ``model`` to ``folder`` with its layers' projections quantised; return the folder.

    Args:
        config: ``W8A8``, ``FP8``, or any other, whose tensors are then as with ``W8A8``.
    """
    shutil.copytree(model, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = tensor
        elif config is FP8:
            blocks = tensor.unflatten(0, (-1, FP8_BLOCK)).unflatten(2, (-1, FP8_BLOCK))
            scale = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name] = stored.flatten(2).flatten(0, 1)
            tensors[f"{name}_scale_inv"] = scale
        else:
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
    return folder
