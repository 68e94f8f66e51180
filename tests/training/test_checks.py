"""What cannot succeed is refused before any long work."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.quantised import W8A8, quantise
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import ExitHeadError, PPSDConfigError, TrainingError
from vllm_ppsd.training.checks import check_recipe, required_layers
from vllm_ppsd.training.recipe import Recipe


def test_what_cannot_succeed_is_refused_first(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))
    with pytest.raises(TrainingError, match="exit layer 6 is out of range"):
        check_recipe(Recipe(model=model, exit_layer=6))
    with pytest.raises(PPSDConfigError, match="no prompt file"):
        check_recipe(Recipe(model=model, exit_layer=3, data=("nowhere",)))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "t{i}"}}\n' for i in range(128)))
    with pytest.raises(TrainingError, match="128 validation documents leave none of 128"):
        check_recipe(Recipe(model=model, exit_layer=3, data=(str(prompts),)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"start_layer": 3}, "start from layers 4 to 5"),
        ({"start_layer": 5, "layers": 2}, "start from layers 4 to 4"),
        ({"start_layer": 4, "head": "lens"}, "only the transformer head has layers"),
    ],
)
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], match: str):
    model = str(make_tiny_model(tmp_path / "tiny"))
    recipe = Recipe(model=model, exit_layer=3).model_copy(update=changes)
    with pytest.raises(TrainingError, match=match):
        check_recipe(recipe)


def test_heads_of_experts_are_lens_heads(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "experts", "qwen3_moe"))
    with pytest.raises(ExitHeadError, match="Qwen3MoeForCausalLM takes no transformer heads"):
        check_recipe(Recipe(model=model, exit_layer=3))
    check_recipe(Recipe(model=model, exit_layer=3, head="lens"))


def test_a_quantised_target_that_cannot_be_loaded_is_refused(tmp_path: Path):
    config = W8A8 | {"quant_method": "awq"}
    model = quantise(make_tiny_model(tmp_path / "tiny"), tmp_path / "awq", config)
    with pytest.raises(TrainingError, match=r"quantised by awq, which transformers cannot load"):
        check_recipe(Recipe(model=str(model), exit_layer=3, head="lens"))


def test_a_target_without_an_lm_head_is_refused(tmp_path: Path):
    model = make_tiny_model(tmp_path / "tiny", tied=False)
    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"holds no tensor lm_head\.weight"):
        check_recipe(Recipe(model=str(model), exit_layer=3))


def test_a_new_head_needs_the_states_where_its_layers_start():
    recipe = Recipe(model="m", exit_layer=3, deeper_layers=(5, 6), start_layer=4)
    assert required_layers(recipe) == [3, 4, 5]
    assert required_layers(recipe.model_copy(update={"from_head": "h"})) == [3, 5]
