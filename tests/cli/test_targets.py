"""Every command refuses a target that PPSD does not know, by name and before anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config

from vllm_ppsd.cli.main import main
from vllm_ppsd.exit_head import architectures

COMMANDS = {
    "init-head": ["init-head", "MODEL", "--exit-layer", "2", "-o", "OUT"],
    "train": ["train", "MODEL", "--exit-layer", "2", "--data", "PROMPTS", "-o", "OUT"],
    "generate": ["generate", "MODEL", "--exit-layer", "2", "--data", "PROMPTS", "--work", "OUT"],
    "cache": ["cache", "MODEL", "--exit-layer", "2", "--work", "OUT"],
    "fit": ["fit", "MODEL", "--exit-layer", "2", "--work", "OUT", "-o", "OUT/head"],
    "eval": ["eval", "HEAD", "MODEL", "--prompts", "PROMPTS", "--work", "OUT"],
    "profile": ["profile", "MODEL", "-o", "OUT"],
    "profile with a head": ["profile", "MODEL", "--head", "HEAD", "-o", "OUT"],
    "plan": ["plan", "MODEL", "--stages", "2"],
    "plan with a head": ["plan", "MODEL", "--stages", "2", "--head", "HEAD"],
    "trace": ["trace", "MODEL", "-o", "OUT"],
    "trace with a head": ["trace", "MODEL", "--head", "HEAD", "-o", "OUT"],
    "bench": ["bench", "MODEL", "-o", "OUT"],
    "bench with a head": ["bench", "MODEL", "--head", "HEAD", "-o", "OUT"],
    "demo": ["demo", "MODEL"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_gpt2_is_refused_by_every_command(
    command: list[str], tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, prompts = tmp_path / "gpt2", tmp_path / "prompts.jsonl"
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(model)
    (model / "model.safetensors").touch()
    prompts.write_text('{"prompt": "t5"}\n')
    places = {"MODEL": model, "PROMPTS": prompts, "HEAD": tiny_llama / "ppsd"}
    words = [str(places.get(word, word)).replace("OUT", str(tmp_path / "out")) for word in command]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "GPT2LMHeadModel is not supported yet; PPSD knows" in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_a_plan_prints_no_command_that_would_be_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    experts = architectures.Architecture(transformer_heads=False)
    monkeypatch.setitem(architectures.ARCHITECTURES, "LlamaForCausalLM", experts)
    words = ["plan", str(tiny_llama), "--stages", "2"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "takes no transformer heads yet" in said.err
    assert said.out == ""
    assert main([*words, "--head", str(tiny_llama / "ppsd")]) == 0


def test_a_folder_that_cannot_be_written_is_one_line(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "head")
    assert main(["init-head", str(tiny_llama), "--exit-layer", "2", "-o", output]) == 2
    assert "file: File exists" in capsys.readouterr().err
