"""Training commands: what is refused before any long work."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ppsd.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "t5"}\n')
    return str(file)


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    message = refused(capsys, "train", "-o", str(tmp_path / "head"))
    assert "model: Field required" in message
    assert "exit_layer: Field required" in message


def test_options_override_the_recipe(
    tiny_llama: Path, prompts: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny_llama}\nexit_layer: 3\ndata: [{prompts}]\n")
    words = ["train", "--recipe", str(recipe), "-o", str(tmp_path / "head")]
    message = refused(capsys, *words, "--exit-layer", "9")
    assert "exit layer 9 is out of range" in message
    assert "must lie between 1 and 5" in message
    assert "nowhere is no prompt file" in refused(capsys, *words, "--data", "nowhere")


def test_a_device_that_is_not_there_is_refused(
    tiny_llama: Path,
    prompts: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["train", str(tiny_llama), "--exit-layer", "3", "--data", prompts]
    message = refused(capsys, *words, "-o", str(tmp_path / "head"), "--device", "cuda")
    assert "PyTorch sees no CUDA device" in message


def test_states_without_text_are_refused(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    words = ["cache", str(tiny_llama), "--exit-layer", "3", "--work", str(tmp_path)]
    assert "generate it first" in refused(capsys, *words)
