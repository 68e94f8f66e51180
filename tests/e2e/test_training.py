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
from vllm_ppsd.training.acceptance import validate
from vllm_ppsd.training.build import trained
from vllm_ppsd.training.dataset import StateSet
from vllm_ppsd.training.generate import read_documents

pytestmark = pytest.mark.e2e

EXIT = 4
TOKENS = 32


def test_a_trained_head_is_served_with_the_acceptance_it_was_measured_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # In bfloat16, native on some processors, a token's logits depend on its batch.
    for native in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, native, lambda: False)
    model = make_tiny_model(tmp_path / "tiny", "qwen3")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 48)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(model),
                "exit_layer": EXIT,
                "start_layer": EXIT + 1,
                "draft_vocab_size": 400,
                "data": [str(prompts)],
                "generation": {
                    "max_prompt_tokens": 32,
                    "temperatures": [0.0],
                    "max_tokens": TOKENS,
                    "prompts_per_shard": 24,
                    "enforce_eager": True,
                },
                "optimisation": {
                    "epochs": 6,
                    "batch_tokens": 256,
                    "validation_documents": 8,
                    "validate_every": 10,
                },
                "rounds": [{}, {"optimisation": {"epochs": 2, "ce_weight": 0.3}}],
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
    assert {line["round"] for line in log} == {1, 2}
    first = [line for line in log if line["round"] == 1]
    losses = [line["validation"]["loss"] for line in first if "validation" in line]
    assert losses[-1] < losses[0]
    folder = ExitHeadFolder.open(head)
    folder.check_target(str(model))
    assert folder.config.start_layer == EXIT + 1

    # Nothing is done twice, and nothing is overwritten.
    assert main(["train", *options, "-o", str(head)]) == 2
    assert "exists already" in capsys.readouterr().err

    # Served, it accepts what its evaluation says, and the text is the target's own.
    texts = sorted((work / "text").glob("*.jsonl"))
    greedy = [d for path in texts for d in read_documents(path)]
    with e.engine(model, ppsd={"model": str(head)}, dtype="float32") as llm:
        sampling = e.params(TOKENS, ignore_eos=False)
        for document in greedy:
            assert e.generate(llm, document.prompt, sampling).tokens == document.output
        e.assert_drafted(llm)
        drafts, hits, _ = e.counts(llm)
    states = StateSet(work / "states", EXIT)
    trained_head, vocabulary = trained(folder, str(model))
    measured = validate(trained_head, [states.batch(states.documents)], vocabulary)
    assert hits / drafts == pytest.approx(measured.acceptance, abs=0.02)


def write_prompts(path: Path, count: int) -> Path:
    """Write prompts of words of the tiny tokenizer, all different."""
    rows = [
        {"prompt": " ".join(f"t{3 + (7 * i + 13 * j) % 500}" for j in range(6 + i % 5))}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
