"""The rounds of a recipe: what each is trained on, and that finished ones are skipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.create import init_head
from vllm_ppsd.training import distill as module
from vllm_ppsd.training.distill import distill
from vllm_ppsd.training.fit import LOG
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.rounds import ORIGIN, RoundRun, rounds_of

VALIDATION = {
    "acceptance": 0.5,
    "agreement": 0.5,
    "loss": 1.0,
    "rows": 4,
}


class Steps:
    """In place of the three steps: notes what was asked, and writes a round's head."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[str] = []
        self.starts: list[str | None] = []
        self.killed_in = 0
        self.first_token = 0
        monkeypatch.setattr(module, "generate", lambda *_: self.taken.append("generate"))
        monkeypatch.setattr(module, "_cache", lambda *_: self.taken.append("cache"))
        monkeypatch.setattr(module, "_fit", self.fit)

    def fit(self, one: RoundRun, _: Accelerator, command: str) -> None:
        number = int(one.folder.name.removeprefix("round-"))
        self.taken.append(f"fit {number}")
        self.starts.append(one.recipe.from_head)
        if number == self.killed_in:
            raise KeyboardInterrupt
        line = {"step": number, "steps": number, "loss": 1.0}
        judged = {"step": number, "steps": number, "validation": VALIDATION}
        (one.folder / LOG).write_text(f"{json.dumps(line)}\n{json.dumps(judged)}\n")
        origin = {"command": command, "answer_tokens": 9, "documents": 3, "validation": VALIDATION}
        (one.folder / ORIGIN).write_text(json.dumps(origin))
        tokens = [self.first_token + number, 500]
        init_head(one.recipe.model, one.head, exit_layer=3, draft_token_ids=tokens)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(make_tiny_model(tmp_path / "tiny")),
            "exit_layer": 3,
            "head": "lens",
            "optimisation": {"validation_documents": 4, "precision": "fp32"},
            "rounds": [
                {"shards": 2},
                {"optimisation": {"kl_weight": 0.0, "ce_weight": 1.0}},
                {"generation": {"temperatures": [1.0]}},
            ],
        }
    )


def run(recipe: Recipe, tmp_path: Path, name: str = "head", command: str = "one") -> Path:
    output = tmp_path / name
    distill(recipe, tmp_path / "work", output, torch.device("cpu"), command)
    return output


def test_each_round_goes_on_from_the_one_before(recipe: Recipe, steps: Steps, tmp_path: Path):
    head = run(recipe, tmp_path)
    assert steps.taken == [step for n in (1, 2, 3) for step in ("generate", "cache", f"fit {n}")]
    runs = tmp_path / "work" / "runs" / "head"
    assert steps.starts == [None, str(runs / "round-1/head"), str(runs / "round-2/head")]
    with pytest.raises(TrainingError, match="exists already"):
        run(recipe, tmp_path)
    last = ExitHeadFolder.open(runs / "round-3" / "head")
    assert ExitHeadFolder.open(head).digest() == last.digest()


def test_the_record_holds_every_round(recipe: Recipe, steps: Steps, tmp_path: Path):
    head = run(recipe, tmp_path)
    log = [json.loads(line) for line in (head / "log.jsonl").read_text().splitlines()]
    assert [line["round"] for line in log] == [1, 1, 2, 2, 3, 3]
    origin = json.loads((head / "origin.json").read_text())
    assert [one["command"] for one in origin["rounds"]] == ["one"] * 3
    assert "in 3 round(s)" in (head / "README.md").read_text()
    assert (head / "curves.png").stat().st_size > 10_000


def test_finished_rounds_are_skipped(recipe: Recipe, steps: Steps, tmp_path: Path):
    steps.killed_in = 3
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path)
    steps.killed_in = 0
    steps.taken.clear()
    head = run(recipe, tmp_path, command="two")
    assert steps.taken == ["generate", "cache", "fit 3"]
    origin = json.loads((head / "origin.json").read_text())
    assert [one["command"] for one in origin["rounds"]] == ["one", "one", "two"]


def test_a_round_of_another_recipe_is_refused(recipe: Recipe, steps: Steps, tmp_path: Path):
    run(recipe, tmp_path).rename(tmp_path / "old")
    first, _, last = recipe.rounds
    changed = recipe.model_copy(update={"rounds": (first, first, last)})
    with pytest.raises(TrainingError, match="round-2 holds a run of another recipe"):
        run(changed, tmp_path)


def test_a_round_that_went_on_from_another_head_is_refused(
    recipe: Recipe, steps: Steps, tmp_path: Path
):
    run(recipe, tmp_path).rename(tmp_path / "old")
    shutil.rmtree(tmp_path / "work" / "runs" / "head" / "round-2")
    steps.taken.clear()
    steps.first_token = 100
    with pytest.raises(TrainingError, match=r"round-3 holds a run .* from another head"):
        run(recipe, tmp_path)
    assert steps.taken == ["generate", "cache", "fit 2"]


def test_rounds_that_learn_from_the_same_text_share_its_folder(recipe: Recipe, tmp_path: Path):
    first, second, third = rounds_of(recipe, tmp_path)
    assert first.work == second.work == tmp_path
    assert third.work == tmp_path / "round-3"
    assert (first.recipe.shards, second.recipe.shards) == (2, None)


def test_a_recipe_without_rounds_is_one_round(recipe: Recipe, steps: Steps, tmp_path: Path):
    run(recipe.model_copy(update={"rounds": ()}), tmp_path)
    assert steps.taken == ["generate", "cache", "fit 1"]
