"""What a recipe needs, and what is refused before long work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.tools.prompts import read_prompts
from vllm_ppsd.training.diagonal import cached_layers
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.target import check_deeper_layers, check_exit_layer, check_start_layer


def learned_from(recipe: Recipe) -> list[int]:
    """Return the layers whose states must be cached for a recipe."""
    layers = cached_layers(recipe.exit_layer, recipe.deeper_layers)
    if recipe.start_layer is None or recipe.from_head:
        return layers
    return sorted({*layers, recipe.start_layer})


def check_layers(recipe: Recipe) -> None:
    """Refuse layers that the target does not have, or not in this order.

    Raises:
        TrainingError: names the layer and what is possible.
    """
    check_exit_layer(recipe.model, recipe.exit_layer)
    check_deeper_layers(recipe.model, recipe.exit_layer, recipe.deeper_layers)
    if recipe.start_layer is None:
        return
    if recipe.head != "transformer":
        raise TrainingError(
            f"start_layer is {recipe.start_layer}, but the head is {recipe.head!r}; only a "
            "transformer head has layers to start"
        )
    check_start_layer(recipe.model, recipe.exit_layer, recipe.start_layer, recipe.layers)


def check_request(recipe: Recipe, output: Path) -> None:
    """Refuse what cannot succeed.

    Raises:
        TrainingError: says what is wrong.
        ExitHeadError: the head to go on from is broken, or made for another model.
    """
    check_layers(recipe)
    if recipe.from_head:
        starting_head(recipe)
    if output.exists():
        raise TrainingError(f"{output} exists already; remove it or name another folder")
    prompts = read_prompts(recipe.data) if recipe.data else []
    documents = len(prompts) * recipe.generation.samples
    held_out = recipe.optimisation.validation_documents
    if prompts and not recipe.text and documents <= held_out:
        raise TrainingError(
            f"{held_out} validation documents leave none of {documents} answers to train on; "
            "lower validation_documents or use more prompts"
        )
    for text in recipe.text:
        if not Path(text).is_file() or not Path(text).stat().st_size:
            raise TrainingError(f"the text file {text} is missing or empty")


def starting_head(recipe: Recipe) -> ExitHeadFolder:
    """Return the head that a recipe goes on from.

    Raises:
        ExitHeadError: it is broken, or made for another model.
        TrainingError: it is of another kind than the recipe asks for.
    """
    assert recipe.from_head is not None
    folder = ExitHeadFolder.open(recipe.from_head)
    folder.check_target(recipe.model)
    config = folder.config
    has: dict[str, Any] = {
        "head": config.head_type,
        "layers": config.num_layers,
        "start_layer": config.start_layer,
        "intermediate_size": config.intermediate_size,
        "output_map": config.output_map,
        "draft_vocab_size": config.draft_vocab_size,
    }
    asked: dict[str, Any] = {
        "head": recipe.head,
        "layers": recipe.layers if recipe.head == "transformer" else 0,
        "start_layer": recipe.start_layer,
        "intermediate_size": recipe.intermediate_size or config.intermediate_size,
        "output_map": recipe.output_map,
        "draft_vocab_size": recipe.draft_vocab_size,
    }
    if config.deeper_layers:
        has["deeper_layers"] = list(config.deeper_layers)
        asked["deeper_layers"] = list(recipe.deeper_layers)
    other = [f"{name} {has[name]}, not {asked[name]}" for name in has if has[name] != asked[name]]
    if other:
        raise TrainingError(
            f"the head {folder.path} to go on from has {'; '.join(other)}; say the same in the "
            "recipe, or train from the start"
        )
    return folder
