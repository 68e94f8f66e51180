"""Recipes: what is refused, before any long work."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import make_tiny_model

from vllm_ppsd.training.distill import check_request
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.recipe import Recipe, read_recipe


def test_an_unknown_field_is_named(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nexit_layer: 3\noptimisation: {epoch: 1}\n")
    with pytest.raises(TrainingError, match=r"optimisation\.epoch: Extra inputs"):
        read_recipe(file)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: [")
    with pytest.raises(TrainingError, match=r"r\.yaml cannot be read"):
        read_recipe(file)


def test_what_cannot_succeed_is_refused_first(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))
    output = tmp_path / "head"
    with pytest.raises(TrainingError, match="exit layer 6 is out of range"):
        check_request(Recipe(model=model, exit_layer=6), output)
    with pytest.raises(TrainingError, match="no prompt file"):
        check_request(Recipe(model=model, exit_layer=3, data=("nowhere",)), output)
    with pytest.raises(TrainingError, match="is missing or empty"):
        check_request(Recipe(model=model, exit_layer=3, text=("nowhere",)), output)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "t{i}"}}\n' for i in range(128)))
    with pytest.raises(TrainingError, match="128 validation documents leave none of 128"):
        check_request(Recipe(model=model, exit_layer=3, data=(str(prompts),)), output)
    output.mkdir()
    with pytest.raises(TrainingError, match="exists already"):
        check_request(Recipe(model=model, exit_layer=3), output)
