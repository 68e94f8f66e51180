"""One recipe, one change at a time."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.ablation import BASE, FURTHER_ON, MULTI_DEPTH, VARIANTS, render, variant
from vllm_ppsd.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {"model": "m", "exit_layer": 4, "optimisation": {"epochs": 3, "batch_tokens": 512}}
)
ARGUMENTS = Namespace(epochs=0.5, deeper_layers=[6, 9], start_layer=7)


def test_every_variant_is_a_recipe_of_its_own():
    made = [variant(RECIPE, change, ARGUMENTS) for change in VARIANTS.values()]
    assert len({recipe.model_dump_json() for recipe in made}) == len(VARIANTS)
    assert {recipe.optimisation.batch_tokens for recipe in made} == {512}


def test_a_share_is_of_the_bases_epochs():
    assert variant(RECIPE, {}, ARGUMENTS).optimisation.epochs == 0.5
    assert variant(RECIPE, {"share": 2.0}, ARGUMENTS).optimisation.epochs == 1.0


def test_multi_depth_variants_read_the_later_stages_of_the_pipeline_that_is_named():
    made = {name: variant(RECIPE, change, ARGUMENTS) for name, change in VARIANTS.items()}
    reading = {name for name, recipe in made.items() if recipe.deeper_layers}
    assert reading == {name for name in VARIANTS if MULTI_DEPTH in name}
    assert {made[name].deeper_layers for name in reading} == {(6, 9)}


def test_variants_further_on_start_from_the_layer_that_is_named():
    for name, change in VARIANTS.items():
        start_layer = variant(RECIPE, change, ARGUMENTS).start_layer
        assert start_layer == (7 if FURTHER_ON in name else None)


def test_the_table_shows_gains_over_the_base():
    rows = [
        {"name": BASE, "a": 0.5, "overall": 0.5},
        {"name": "x", "a": 0.6, "overall": 0.625},
    ]
    assert render(rows).splitlines()[-1] == "| x | 0.600 | 0.625 | +0.125 |"
