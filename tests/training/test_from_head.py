"""Training that goes on from another head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.states import write_states
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.training.acceptance import Validation
from vllm_ppsd.training.build import read_lm_head
from vllm_ppsd.training.distill import distill
from vllm_ppsd.training.recipe import Recipe

DEVICE = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    model = str(make_tiny_model(tmp_path / "tiny"))
    for exit_layer in (3, 4):
        write_states(
            tmp_path / "work" / "states",
            [(4, 12)] * 40,
            exit_layer=exit_layer,
            lm_head=read_lm_head(model),
        )
    return Recipe.model_validate(
        {
            "model": model,
            "exit_layer": 3,
            "draft_vocab_size": 300,
            "optimisation": {
                "epochs": 2,
                "batch_tokens": 64,
                "validation_documents": 4,
                "validate_every": 5,
                "precision": "fp32",
            },
        }
    )


def fit(recipe: Recipe, work: Path, output: Path, command: str) -> Validation:
    return distill(recipe, work, output, DEVICE, command, cached=True)


def first_validation(head: Path) -> float:
    line = json.loads((head / "log.jsonl").read_text().splitlines()[0])
    return float(line["validation"]["acceptance"])


def test_layers_that_start_further_on_learn_from_the_states_there(recipe: Recipe, tmp_path: Path):
    work, head = tmp_path / "work", tmp_path / "head"
    for path in (work / "states" / "exit-4").iterdir():
        save_file({"states": 2 * load_file(path)["states"]}, str(path))
    onward = recipe.model_copy(update={"start_layer": 4})
    result = fit(onward, work, head, "one")
    assert result.rows > 0
    folder = ExitHeadFolder.open(head)
    assert folder.config.start_layer == 4
    added = folder.tensors()["input_map.weight"].float()
    torch.testing.assert_close(added, torch.eye(128), atol=0.05, rtol=0)
    other = recipe.model_copy(update={"from_head": str(head)})
    with pytest.raises(TrainingError, match="start_layer 4, not None"):
        fit(other, work, tmp_path / "other", "two")


def test_a_head_goes_on_where_the_other_ended(recipe: Recipe, tmp_path: Path):
    work, first, second = tmp_path / "work", tmp_path / "first", tmp_path / "second"
    before = fit(recipe, work, first, "one")
    onwards = recipe.model_copy(update={"from_head": str(first)})
    fit(onwards, work, second, "two")
    assert first_validation(second) == pytest.approx(before.acceptance, abs=0.03), "as bfloat16"
    origin = json.loads((second / "origin.json").read_text())
    assert origin["from_head"]["origin"]["rounds"][0]["command"] == "one"
    assert origin["from_head"]["weights"].startswith("sha256:")
    old, new = ExitHeadFolder.open(first).tensors(), ExitHeadFolder.open(second).tensors()
    assert torch.equal(old["draft_token_ids"], new["draft_token_ids"])


def test_it_may_stand_behind_another_exit(recipe: Recipe, tmp_path: Path):
    work, first, second = tmp_path / "work", tmp_path / "first", tmp_path / "second"
    fit(recipe, work, first, "one")
    moved = recipe.model_copy(update={"from_head": str(first), "exit_layer": 4})
    fit(moved, work, second, "two")
    assert ExitHeadFolder.open(second).config.exit_layer == 4


def test_another_kind_of_head_is_refused(recipe: Recipe, tmp_path: Path):
    work, first = tmp_path / "work", tmp_path / "first"
    fit(recipe, work, first, "one")
    other = recipe.model_copy(update={"from_head": str(first), "layers": 2})
    with pytest.raises(TrainingError, match="has layers 1, not 2"):
        fit(other, work, tmp_path / "second", "two")
    assert not (tmp_path / "second").exists()


def test_a_multi_depth_head_goes_on_from_one_of_the_exit_alone(recipe: Recipe, tmp_path: Path):
    work, first, second = tmp_path / "work", tmp_path / "first", tmp_path / "second"
    before = fit(recipe, work, first, "one")
    layers = ExitHeadFolder.open(first).config.target.num_hidden_layers
    onwards = recipe.model_copy(update={"from_head": str(first), "deeper_layers": (layers,)})
    fit(onwards, work, second, "two")
    assert first_validation(second) == pytest.approx(before.acceptance, abs=0.03), "as bfloat16"
    folder = ExitHeadFolder.open(second)
    assert folder.config.stages == [3, layers - 3]
    assert folder.tensors()["deeper_in.0.weight"].any()
    back = recipe.model_copy(update={"from_head": str(second)})
    with pytest.raises(TrainingError, match="deeper_layers"):
        fit(back, work, tmp_path / "third", "three")


def test_a_head_gains_steps_and_keeps_its_first(recipe: Recipe, tmp_path: Path):
    work, first, second = tmp_path / "work", tmp_path / "first", tmp_path / "second"
    before = fit(recipe, work, first, "one")
    assert ExitHeadFolder.open(first).config.steps == 1
    onwards = recipe.model_copy(update={"from_head": str(first), "steps": 3})
    result = fit(onwards, work, second, "two")
    assert first_validation(second) == pytest.approx(before.acceptance, abs=0.03), "as bfloat16"
    assert len(result.given) == 3 and 1 < result.tokens < 4
    folder = ExitHeadFolder.open(second)
    assert folder.config.steps == 3
    assert folder.tensors()["fuse.weight"].shape == (128, 256)
    origin = json.loads((second / "origin.json").read_text())
    assert origin["acceptance_by_step"] == result.given
    assert "3 drafts" in (second / "README.md").read_text()
    back = recipe.model_copy(update={"from_head": str(second)})
    with pytest.raises(TrainingError, match="set steps to 3"):
        fit(back, work, tmp_path / "third", "three")


def test_a_round_may_bring_steps_to_a_new_head(recipe: Recipe, tmp_path: Path):
    rounds = ({}, {"steps": 2})
    both = Recipe.model_validate(recipe.model_dump(exclude={"rounds"}) | {"rounds": rounds})
    result = fit(both, tmp_path / "work", tmp_path / "head", "both")
    assert len(result.given) == 2
    assert ExitHeadFolder.open(tmp_path / "head").config.steps == 2


@pytest.mark.parametrize("deeper", [(2, 6), (5,), (6, 5), (5, 5, 6)])
def test_deeper_layers_that_are_no_stages_ends_are_refused(
    deeper: tuple[int, ...], recipe: Recipe, tmp_path: Path
):
    wrong = recipe.model_copy(update={"deeper_layers": deeper})
    with pytest.raises(TrainingError, match="must rise from behind the exit layer 3 to 6"):
        fit(wrong, tmp_path / "work", tmp_path / "head", "")
