"""What a recipe needs, and what is refused before long work starts."""

from __future__ import annotations

from itertools import pairwise

from pydantic import ValidationError

from vllm_ppsd.config.errors import TrainingError, problems
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.create import head_config
from vllm_ppsd.exit_head.fingerprint import describe_target
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.tools.prompts import read_prompts
from vllm_ppsd.training.build import untrained
from vllm_ppsd.training.dataset import cached_layers
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.target import check_loadable

KEPT = {
    "head": "head_type",
    "layers": "num_layers",
    "start_layer": "start_layer",
    "output_map": "output_map",
    "draft_vocab_size": "draft_vocab_size",
}
"""What a head must share with the one it goes on from: the recipe's key, the config's field."""


def required_layers(recipe: Recipe) -> list[int]:
    """Return the layers whose states must be cached for a recipe."""
    layers = cached_layers(recipe.exit_layer, recipe.deeper_layers)
    if recipe.start_layer is None or recipe.from_head:
        return layers
    return sorted({*layers, recipe.start_layer})


def recipe_head(recipe: Recipe) -> ExitHeadConfig:
    """Return the config of the head that a recipe makes.

    Raises:
        ExitHeadError: the target cannot be read, or takes no such heads.
        TrainingError: the target has no such layers, or not in this order.
    """
    target = describe_target(model_folder(recipe.model))
    rows = recipe.draft_vocab_size
    try:
        return head_config(
            target,
            exit_layer=recipe.exit_layer,
            head_type=recipe.head,
            num_layers=recipe.layers,
            start_layer=recipe.start_layer,
            output_map=recipe.output_map,
            draft_vocab_size=rows if rows and rows < target.vocab_size else None,
            deeper_layers=recipe.deeper_layers,
            steps=recipe.steps,
        )
    except ValidationError as error:
        raise TrainingError(f"no such head for {recipe.model}: {problems(error, 'head')}") from None


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot succeed, in any round.

    Raises:
        TrainingError: says what is wrong.
        ExitHeadError: the target takes no such heads, or the head to go on from is broken, or
            made for another model.
    """
    rounds = recipe.each_round()
    configs = [recipe_head(one) for one in rounds]
    check_loadable(recipe.model)
    if recipe.from_head:
        _check_starting_head(recipe, configs[0])
    else:
        untrained(recipe.model, configs[0], None)
    for before, after in pairwise(configs):
        _check_steps(before, after)
    for one in rounds:
        prompts = read_prompts(one.data) if one.data else []
        documents = len(prompts) * one.generation.samples
        held_out = one.optimisation.validation_documents
        if prompts and documents <= held_out:
            raise TrainingError(
                f"{held_out} validation documents leave none of {documents} answers to train on; "
                "lower validation_documents or use more prompts"
            )


def _check_starting_head(recipe: Recipe, asked: ExitHeadConfig) -> None:
    """Refuse a head to go on from that is of another kind than ``asked``."""
    assert recipe.from_head is not None
    folder = ExitHeadFolder.open(recipe.from_head)
    folder.check_target(recipe.model)
    kept = KEPT | ({"deeper_layers": "deeper_layers"} if folder.config.deeper_layers else {})
    other = [
        f"{key} {before!r}, not {now!r}"
        for key, field in kept.items()
        if (before := getattr(folder.config, field)) != (now := getattr(asked, field))
    ]
    if other:
        raise TrainingError(
            f"the head {folder.path} to go on from has {'; '.join(other)}; say the same in the "
            "recipe, or train from the start"
        )
    _check_steps(folder.config, asked)


def _check_steps(before: ExitHeadConfig, after: ExitHeadConfig) -> None:
    """Refuse to take continuations from a head that has them."""
    if after.steps < before.steps:
        raise TrainingError(
            f"the head to go on from is trained for {before.steps} steps, the round behind it for "
            f"{after.steps}, which would spoil the others; set steps to {before.steps}"
        )
