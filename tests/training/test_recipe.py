"""Recipe files: what is refused, and what a round changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.training.recipe import Recipe, read_recipe


def test_an_unknown_field_is_named(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nexit_layer: 3\noptimisation: {epoch: 1}\n")
    with pytest.raises(TrainingError, match=r"optimisation\.epoch: Extra inputs"):
        read_recipe(file)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: [")
    with pytest.raises(TrainingError, match=r"r\.yaml, line 1: no YAML"):
        read_recipe(file)


def test_a_round_changes_what_it_names(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: m\nexit_layer: 3\noptimisation: {epochs: 2, batch_tokens: 512}\n"
        "rounds: [{}, {shards: 4, optimisation: {epochs: 1}}]\n"
    )
    first, second = read_recipe(file).each_round()
    assert (first.shards, first.optimisation.epochs) == (None, 2)
    assert (second.shards, second.optimisation.epochs) == (4, 1)
    assert first.optimisation.batch_tokens == second.optimisation.batch_tokens == 512
    assert not first.rounds


def test_a_round_cannot_change_the_head(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nexit_layer: 3\nrounds: [{layers: 2}]\n")
    with pytest.raises(TrainingError, match=r"rounds\.0\.layers: Extra inputs"):
        read_recipe(file)


def test_a_recipe_written_down_is_the_same(tmp_path: Path):
    recipe = Recipe.model_validate(
        {"model": "m", "exit_layer": 3, "rounds": [{"shards": 1}, {"cache": {"top_k": 4}}]}
    )
    file = tmp_path / "r.yaml"
    file.write_text(recipe.as_yaml())
    assert read_recipe(file).each_round() == recipe.each_round()
