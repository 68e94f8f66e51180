"""From a recipe to an exit head: rounds of three steps, each where it stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.files import write_whole
from vllm_ppsd.training.acceptance import Validation
from vllm_ppsd.training.build import checkpoint_tensors, trained, untrained
from vllm_ppsd.training.checks import check_recipe, recipe_head, required_layers
from vllm_ppsd.training.dataset import Place, StateSet
from vllm_ppsd.training.fit import Fit
from vllm_ppsd.training.generate import generate
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import most_frequent
from vllm_ppsd.training.memory import keep_freed_memory
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Optimisation, Recipe
from vllm_ppsd.training.record import round_origin, write_record
from vllm_ppsd.training.ridge import fit_fusion, fit_input_map, fit_output_map
from vllm_ppsd.training.rounds import ORIGIN, RoundRun, rounds_of
from vllm_ppsd.training.states import cache_states
from vllm_ppsd.training.target import compute_dtype

RIDGE_TOKENS = 200_000
"""Training tokens that the head's maps are fitted on before training."""


def distill(
    recipe: Recipe,
    work: Path,
    output: Path,
    device: torch.device,
    command: str,
    *,
    cached: bool = False,
) -> Validation:
    """Generate, cache and fit, round by round, and write the last head to ``output``.

    Finished rounds are skipped, begun ones go on where they stopped.

    Args:
        work: folder for text, states and checkpoints.
        command: how the run was started, for the record.
        cached: text and states are there, so that only the fit is left.

    Returns:
        The validation of the head that was written.

    Raises:
        TrainingError: something is wrong with the recipe, the prompts, the work
            folder or the disk; before any long work where it can be known.
        ExitHeadError: the head to go on from is broken, or made for another model.
    """
    if output.exists():
        raise TrainingError(f"{output} exists already; remove it or name another folder")
    check_recipe(recipe)
    rounds = rounds_of(recipe, work, output.name)
    dtype = compute_dtype(device, rounds[0].recipe.optimisation.precision)
    accelerator = Accelerator(
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no", cpu=device.type == "cpu"
    )
    for number, one in enumerate(rounds, start=1):
        with accelerator.main_process_first():
            unfinished = one.begin()
        if not unfinished:
            continue
        if len(rounds) > 1 and accelerator.is_main_process:
            Console().print(f"round {number} of {len(rounds)}")
        if not cached:
            generate(one.recipe, one.work, device)
            _cache(one, device)
        _fit(one, accelerator, command)
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    if accelerator.is_main_process:
        head = ExitHeadFolder.open(rounds[-1].head)
        beside = write_record(recipe, rounds, rounds[-1].folder.parent)
        save(output, head.config, head.tensors(), beside)
    accelerator.end_training()
    return Validation(**rounds[-1].origin["validation"])


def write_texts(recipe: Recipe, work: Path, device: torch.device) -> None:
    """Take the first step of every round; arguments and errors as of ``distill``."""
    check_recipe(recipe)
    for one in rounds_of(recipe, work):
        generate(one.recipe, one.work, device)


def write_states(recipe: Recipe, work: Path, device: torch.device) -> None:
    """Take the second step of every round; arguments and errors as of ``distill``."""
    check_recipe(recipe)
    for one in rounds_of(recipe, work):
        _cache(one, device)


def _cache(one: RoundRun, device: torch.device) -> None:
    recipe = one.recipe
    layers = required_layers(recipe)
    cache_states(recipe.model, recipe.cache, layers, one.work, device, recipe.shards)


def _fit(one: RoundRun, accelerator: Accelerator, command: str) -> None:
    """Fit a round's head to the cached states, and write it with its origin."""
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    recipe, settings = one.recipe, one.recipe.optimisation
    torch.manual_seed(settings.seed)
    states = StateSet(one.work / "states", recipe.exit_layer, recipe.deeper_layers, recipe.shards)
    documents, _ = states.split(settings.validation_documents, settings.seed)
    config = recipe_head(recipe)
    if recipe.from_head:
        start = ExitHeadFolder.open(recipe.from_head)
        head, vocabulary = trained(start, recipe.model, config)
    else:
        counts = states.token_counts(documents, config.target.vocab_size)
        token_ids = most_frequent(counts, config.draft_vocab_size)
        head, vocabulary = untrained(recipe.model, config, token_ids)
        start = None
    head.to(accelerator.device)
    if start is None:
        _fit_maps(one, head, states, documents, accelerator.device)
    if config.steps > 1 and (start is None or start.config.steps == 1):
        with Console().status("fitting the fusion by ridge regression"):
            some = _some(documents, settings)
            fit_fusion(head, (states.batch(p, final=True).to(accelerator.device) for p in some))
    validation = Fit(head, states, vocabulary, settings, one.folder, accelerator).run()
    if accelerator.is_main_process:
        origin = json.dumps(round_origin(recipe, states, asdict(validation), command), indent=2)
        write_whole(one.folder / ORIGIN, lambda path: path.write_text(origin))
        save(one.head, config, checkpoint_tensors(head, vocabulary))


def _fit_maps(
    one: RoundRun,
    head: TrainableHead,
    states: StateSet,
    documents: Sequence[Place],
    device: torch.device,
) -> None:
    """Give the maps of a new head their start; the output map's depends on the input map's."""
    recipe, settings = one.recipe, one.recipe.optimisation
    some = _some(documents, settings)
    if recipe.start_layer is not None:
        goals = StateSet(one.work / "states", recipe.start_layer, shards=recipe.shards)
        with Console().status("fitting the input map by ridge regression"):
            fit_input_map(head, ((states.batch(p), goals.batch(p).states) for p in some))
    if recipe.output_map:
        with Console().status("fitting the output map by ridge regression"):
            fit_output_map(head, (states.batch(p, final=True).to(device) for p in some))


def _some(documents: Sequence[Place], settings: Optimisation) -> list[list[Place]]:
    """Return the batches that maps are fitted on."""
    packs = list(pack(documents, settings.batch_tokens, random.Random(settings.seed)))
    return packs[: max(1, RIDGE_TOKENS // settings.batch_tokens)]
