"""Acceptance and expected speedup against the exit layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vllm_ppsd.config.layout import split_layers
from vllm_ppsd.costs import ModelShape
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.files import write_whole
from vllm_ppsd.planning.plan import plans
from vllm_ppsd.planning.shape import shape_of
from vllm_ppsd.planning.times import assumed_profile
from vllm_ppsd.training.distill import fit
from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.generate import generate
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.request import check_layers, learned_from, starting_head
from vllm_ppsd.training.states import cache_states
from vllm_ppsd.training.validation import Validation


def sweep(
    recipe: Recipe,
    exits: Sequence[int],
    work: Path,
    output: Path,
    device: torch.device,
    stages: int,
    command: str,
) -> dict[int, Validation]:
    """Train one head per exit layer on the same text; write them below ``output``.

    Heads that are there already are kept, with the result noted in ``sweep.json``.

    Raises:
        TrainingError: an exit layer is out of range, or the recipe is wrong.
        PPSDConfigError: an exit leaves some stage without a layer.
    """
    if not exits:
        raise TrainingError("name at least one exit layer")
    recipes = {e: recipe.model_copy(update={"exit_layer": e}) for e in exits}
    for chosen in recipes.values():
        check_layers(chosen)
    if recipe.from_head:
        starting_head(recipe)
    shape = shape_of(recipe.model)
    for exit_layer in exits:
        split_layers(shape.num_layers, shape.lm_head_cost, exit_layer, stages)
    generate(recipe, work, device)
    layers = {layer for chosen in recipes.values() for layer in learned_from(chosen)}
    cache_states(recipe.model, recipe.cache, sorted(layers), work, device)
    output.mkdir(parents=True, exist_ok=True)
    notes = output / "sweep.json"
    done = json.loads(notes.read_text()) if notes.is_file() else {}
    for exit_layer, chosen in recipes.items():
        head = output / f"exit-{exit_layer}"
        if str(exit_layer) in done and head.is_dir():
            continue
        found = fit(chosen, work, head, device, stages, command)
        done[str(exit_layer)] = asdict(found)
        write_whole(notes, lambda path: path.write_text(json.dumps(done, indent=2)))
    results = {e: Validation(**done[str(e)]) for e in exits}
    speedups = _speedups(shape, {e: output / f"exit-{e}" for e in exits}, results, stages)
    _print(results, speedups, stages)
    _draw(results, speedups, stages, output / "sweep.png")
    return results


def _speedups(
    shape: ModelShape, heads: dict[int, Path], results: dict[int, Validation], stages: int
) -> dict[int, float]:
    """Return what every exit's acceptance rate promises with stages as its layout makes them."""
    return {
        exit_layer: plans(
            assumed_profile("", shape, ExitHeadFolder.open(heads[exit_layer]).config),
            stages,
            {exit_layer: found.acceptance},
        )[0].speedup
        for exit_layer, found in results.items()
    }


def _print(results: dict[int, Validation], speedups: dict[int, float], stages: int) -> None:
    table = Table("exit layer", "acceptance", "agreement", f"speedup at {stages} stages")
    for exit_layer, found in results.items():
        table.add_row(
            str(exit_layer),
            f"{found.acceptance:.3f}",
            f"{found.agreement:.3f}",
            f"{speedups[exit_layer]:.2f}",
        )
    Console().print(table)


def _draw(
    results: dict[int, Validation], speedups: dict[int, float], stages: int, picture: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    exits = sorted(results)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(exits, [results[e].acceptance for e in exits], "o-", label="acceptance rate")
    axes.set_xlabel("exit layer")
    axes.set_ylabel("acceptance rate, held out")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(
        exits,
        [speedups[e] for e in exits],
        "s--",
        color="C1",
        label=f"expected speedup, {stages} stages, by weights",
    )
    right.set_ylabel("speedup over a plain pipeline")
    right.set_ylim(0, stages)
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper left")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
