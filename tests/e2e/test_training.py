"""A training run on a tiny model: prompts in, a head that vLLM serves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from support import engine as e
from support.tiny import make_tiny_model

from vllm_ppsd.cli.main import main
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.training.evaluate import OVERALL, evaluate

pytestmark = pytest.mark.e2e

EXIT = 4
TOKENS = 32
CPU = torch.device("cpu")


def test_a_trained_head_is_served_with_the_acceptance_it_was_measured_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    model = make_tiny_model(tmp_path / "tiny")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 0, 48)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(model),
                "exit_layer": EXIT,
                "draft_vocab_size": 400,
                "data": [str(prompts)],
                "generation": {
                    "max_prompt_tokens": 32,
                    "max_tokens": TOKENS,
                    "prompts_per_shard": 24,
                    "enforce_eager": True,
                },
                "optimisation": {
                    "epochs": 8,
                    "batch_tokens": 256,
                    "validation_documents": 8,
                    "validate_every": 10,
                },
            }
        )
    )
    head, work = tmp_path / "head", tmp_path / "work"
    options = ["--recipe", str(recipe), "--work", str(work), "--device", "cpu"]
    assert main(["train", *options, "-o", str(head)]) == 0
    assert "expected speedup" in capsys.readouterr().out

    names = {path.name for path in head.iterdir()}
    assert {"README.md", "recipe.yaml", "origin.json", "log.jsonl", "curves.png"} <= names
    assert len(list((work / "text").glob("*.jsonl"))) == 2
    log = [json.loads(line) for line in (head / "log.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in log if "validation" in line]
    assert losses[-1] < losses[0]
    ExitHeadFolder.open(head).check_target(str(model))

    # Nothing is done twice, and nothing is overwritten.
    assert main(["train", *options, "-o", str(head)]) == 2
    assert "exists already" in capsys.readouterr().err

    held_out = write_prompts(tmp_path / "held_out.jsonl", 1000, 12)
    rows = evaluate([head], str(model), [str(held_out)], tmp_path / "eval", CPU, TOKENS)
    measured = next(row.found for row in rows if row.prompts == OVERALL)
    with e.engine(model, ppsd={"model": str(head)}) as llm:
        sampling = e.params(TOKENS, ignore_eos=False)
        for line in held_out.read_text().splitlines():
            tokens = llm.get_tokenizer().encode(json.loads(line)["prompt"])
            e.generate(llm, tokens, sampling)
        e.assert_drafted(llm)
        drafts, hits, _ = e.counts(llm)
    assert hits / drafts == pytest.approx(measured.acceptance, abs=0.02)


def write_prompts(path: Path, start: int, count: int) -> Path:
    """Write prompts of words of the tiny tokenizer, all different."""
    rows = [
        {"prompt": " ".join(f"t{3 + (start + 7 * i + 13 * j) % 500}" for j in range(6 + i % 5))}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
