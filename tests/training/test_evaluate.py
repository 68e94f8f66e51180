"""Evaluation on text that is there already: per set, per head, and refused heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import ExitHeadError, TrainingError
from vllm_ppsd.exit_head.create import init_head
from vllm_ppsd.tools.prompts import read_prompts
from vllm_ppsd.training.acceptance import Sampled, Validation
from vllm_ppsd.training.by_step import LONGEST
from vllm_ppsd.training.evaluate import OVERALL, evaluate, evaluation_recipe, print_evaluations
from vllm_ppsd.training.generate import Document, text_settings, write_documents
from vllm_ppsd.training.shards import Shards

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def prompts_with_answers(
    model: Path, work: Path, folder: Path, temperature: float = 0.0, length: int = 12
) -> str:
    """Write two prompt sets, and the text that the target would write for them."""
    folder.mkdir()
    documents = []
    for name, count in (("one", 3), ("two", 5)):
        rows = [{"prompt": f"t{i + 3} {name}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents += [
            Document([i + 3, 0], torch.randint(3, 512, (length,)).tolist(), temperature, name)
            for i in range(count)
        ]
    recipe = evaluation_recipe(str(model), 3, [str(folder)], length, CPU, temperature)
    shards = Shards(work / "text", ".jsonl", text_settings(recipe, read_prompts([folder])))
    shards.write(0, lambda path: write_documents(documents, path))
    return str(folder)


def test_every_head_is_judged_on_every_set(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = prompts_with_answers(model, tmp_path / "work", tmp_path / "prompts")
    heads = [tmp_path / "lens", tmp_path / "deep"]
    init_head(str(model), heads[0], exit_layer=3)
    init_head(str(model), heads[1], exit_layer=5, head_type="transformer")
    rows, _ = evaluate(heads, str(model), [prompts], tmp_path / "work", CPU, 12)
    assert [(row.head, row.exit_layer, row.prompts, row.result.rows) for row in rows] == [
        ("lens", 3, "one", 36),
        ("lens", 3, "two", 60),
        ("lens", 3, OVERALL, 96),
        ("deep", 5, "one", 36),
        ("deep", 5, "two", 60),
        ("deep", 5, OVERALL, 96),
    ]
    one, two, overall = (row.result for row in rows[3:])
    assert overall.agreement == pytest.approx((36 * one.agreement + 60 * two.agreement) / 96)
    assert overall.agreement > 0
    print_evaluations(rows, [], 2)
    assert "overall" in capsys.readouterr().out


def test_a_lens_head_of_experts_is_judged(tmp_path: Path):
    model = make_tiny_model(tmp_path / "experts", "qwen3_moe")
    prompts = prompts_with_answers(model, tmp_path / "work", tmp_path / "prompts")
    init_head(str(model), tmp_path / "lens", exit_layer=5)
    rows, _ = evaluate([tmp_path / "lens"], str(model), [prompts], tmp_path / "work", CPU, 12)
    assert rows[-1].result.rows == 96
    assert isinstance(rows[-1].result, Validation)
    assert rows[-1].result.agreement > 0


def test_sampled_text_is_judged_by_what_would_be_drawn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = prompts_with_answers(model, tmp_path / "work", tmp_path / "prompts", 0.8)
    init_head(str(model), tmp_path / "lens", exit_layer=3)
    heads = [tmp_path / "lens"]
    rows, _ = evaluate(heads, str(model), [prompts], tmp_path / "work", CPU, 12, temperature=0.8)
    assert [(row.prompts, row.result.rows) for row in rows] == [
        ("one", 36),
        ("two", 60),
        (OVERALL, 96),
    ]
    assert all(isinstance(row.result, Sampled) for row in rows)
    print_evaluations(rows, [], 2, 0.8)
    assert "argmax" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="negative"):
        evaluate(heads, str(model), [prompts], tmp_path / "work", CPU, 12, temperature=-1.0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bursts_are_judged_by_step(
    model: Path, tmp_path: Path, temperature: float, capsys: pytest.CaptureFixture[str]
):
    prompts = prompts_with_answers(model, tmp_path / "work", tmp_path / "prompts", temperature)
    init_head(str(model), tmp_path / "steps", exit_layer=5, head_type="transformer", steps=4)
    rows, bursts = evaluate(
        [tmp_path / "steps"], str(model), [prompts], tmp_path / "work", CPU, 12, temperature
    )
    assert [burst.known for burst in bursts] == [False, True]
    behind_exit, behind_known = (burst.steps for burst in bursts)
    # Answers of 12 tokens: so many have eight steps behind each other.
    assert [step.rows for step in behind_exit] == [8 * 5] * LONGEST
    assert [step.rows for step in behind_known] == [8 * 4] * LONGEST
    assert all(s.among[2] <= s.among[4] <= s.among[8] <= 1 for s in behind_exit)
    assert behind_exit[0].acceptance == behind_exit[0].given
    assert any(step.among[8] for step in behind_exit)
    print_evaluations(rows, bursts, 2, temperature)
    assert "bursts behind a known token" in capsys.readouterr().out


def test_a_head_of_another_model_is_refused_first(model: Path, tmp_path: Path):
    other = make_tiny_model(tmp_path / "other", seed=1)
    init_head(str(other), tmp_path / "head", exit_layer=3)
    with pytest.raises(ExitHeadError, match="made for another model"):
        evaluate([tmp_path / "head"], str(model), ["nowhere"], tmp_path / "work", CPU, 12)
