"""What a head is given of its target's checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.quantised import W8A8, quantise
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head import loading


def test_a_quantised_lm_head_is_read_as_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_tiny_model(tmp_path / "model", tied=False)
    floats = load_file(model / "model.safetensors")["lm_head.weight"]
    folder = quantise(model, tmp_path / "quantised", W8A8 | {"ignore": []})
    tensors = load_file(folder / "model.safetensors")
    scale = floats.abs().amax(dim=1, keepdim=True) / 127
    tensors["lm_head.weight"] = (floats / scale).round().to(torch.int8)
    tensors["lm_head.weight_scale"] = scale
    save_file(tensors, folder / "model.safetensors")
    reader = SimpleNamespace(get_all_weights=lambda *_: iter(tensors.items()))
    monkeypatch.setattr(loading, "get_model_loader", lambda _: reader)
    model_config = SimpleNamespace(model=str(folder), revision=None, dtype=torch.float32)
    vllm_config: Any = SimpleNamespace(model_config=model_config, load_config=None)
    read = loading._untied_lm_head(vllm_config)
    torch.testing.assert_close(read, floats, rtol=0, atol=float(floats.abs().max()) / 127)
