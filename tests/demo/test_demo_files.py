"""The demo model's folder: readable by whom the umask lets read it, whoever made it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm_ppsd.demo import model


def test_the_demo_model_can_be_read_by_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")

    monkeypatch.setattr(model, "_gguf", lambda: Path("x.gguf"))
    monkeypatch.setattr(model, "_convert", convert)
    before = os.umask(0o022)
    try:
        model.convert(tmp_path / "demo")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "demo").iterdir()}
    assert modes == {"config.json": 0o644, "model.safetensors": 0o644}
