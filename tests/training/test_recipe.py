"""Recipe files: what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.recipe import read_recipe


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
