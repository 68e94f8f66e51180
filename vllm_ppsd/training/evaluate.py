"""Acceptance of heads on prompt sets, on text that the target writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.training.acceptance import (
    Sampled,
    Validation,
    judge_sampled,
    validate,
)
from vllm_ppsd.training.build import read_lm_head, trained
from vllm_ppsd.training.by_step import BEST, Step, burst_tokens, judge_steps
from vllm_ppsd.training.dataset import Batch, StateSet, cached_layers
from vllm_ppsd.training.generate import generate
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Cache, Generation, Recipe
from vllm_ppsd.training.states import cache_states
from vllm_ppsd.training.target import check_loadable, compute_dtype

OVERALL = "overall"

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Evaluation:
    """One head on one prompt set, or on all (``OVERALL``)."""

    head: str
    exit_layer: int
    prompts: str
    result: Validation | Sampled


@dataclass(frozen=True)
class Burst:
    """Bursts of one head with continuations, on all prompt sets.

    Attributes:
        known: whether all drafts are continuations, behind a known token; else the first is
            behind an exit state.
        steps: acceptance by step.
    """

    head: str
    known: bool
    steps: list[Step]


def evaluate(
    heads: Sequence[Path],
    model: str,
    prompts: Sequence[str],
    work: Path,
    device: torch.device,
    max_tokens: int,
    temperature: float = 0.0,
) -> tuple[list[Evaluation], list[Burst]]:
    """Return the acceptance of every head on every prompt set, and of bursts on all of them.

    Args:
        heads: exit-head folders.
        prompts: JSONL files or folders of them; a file is a set.
        work: folder for the text and states, kept for another evaluation.
        max_tokens: answer tokens per prompt at most.
        temperature: of the text; above 0 drafts are judged as they are drawn there.

    Raises:
        PPSDConfigError: a head is broken or made for another model, or a prompt
            file is wrong.
        TrainingError: the temperature is negative, transformers cannot load the model, or
            ``work`` holds other text.
    """
    if temperature < 0:
        raise TrainingError(f"the temperature {temperature} is negative; 0 is greedy text")
    folders = [ExitHeadFolder.open(path) for path in heads]
    for folder in folders:
        folder.check_target(model)
    check_loadable(model)
    configs = [folder.config for folder in folders]
    exits = sorted(set().union(*(cached_layers(c.exit_layer, c.deeper_layers) for c in configs)))
    recipe = evaluation_recipe(model, exits[0], prompts, max_tokens, device, temperature)
    generate(recipe, work, device)
    cache_states(model, Cache(), exits, work, device)
    lm_head = read_lm_head(model).to(device)
    rows: list[Evaluation] = []
    bursts: list[Burst] = []
    for folder in folders:
        states = StateSet(work / "states", folder.config.exit_layer, folder.config.deeper_layers)
        head, vocabulary = trained(folder, model)
        head.to(device)
        sources = sorted({place.source for place in states.documents})
        for source in [*sources, OVERALL]:
            with _at_work(f"{folder.path.name} on {source}", device):
                batches = _batches(states, source, device)
                result = (
                    judge_sampled(head, batches, vocabulary, lm_head, temperature)
                    if temperature
                    else validate(head, batches, vocabulary)
                )
            exit_layer = folder.config.exit_layer
            rows.append(Evaluation(folder.path.name, exit_layer, source, result))
        for known in (False, True) if folder.config.steps > 1 else ():
            with _at_work(f"bursts of {folder.path.name}", device):
                batches = _batches(states, OVERALL, device)
                steps = judge_steps(head, batches, vocabulary, lm_head, temperature, known)
            bursts.append(Burst(folder.path.name, known, steps))
    return rows, bursts


def _batches(states: StateSet, source: str, device: torch.device) -> Iterator[Batch]:
    wanted = [d for d in states.documents if source in (d.source, OVERALL)]
    return (states.batch(p, final=True).to(device) for p in pack(wanted, BATCH_TOKENS))


@contextmanager
def _at_work(text: str, device: torch.device) -> Iterator[None]:
    """Say what is under way, and compute as training does."""
    with (
        Console().status(text),
        torch.autocast(
            device.type, torch.bfloat16, enabled=compute_dtype(device) == torch.bfloat16
        ),
    ):
        yield


def evaluation_recipe(
    model: str,
    exit_layer: int,
    prompts: Sequence[str],
    max_tokens: int,
    device: torch.device,
    temperature: float = 0.0,
) -> Recipe:
    """Return the recipe of the text that heads are judged on."""
    return Recipe(
        model=model,
        exit_layer=exit_layer,
        data=tuple(prompts),
        generation=Generation(
            temperatures=(temperature,),
            max_prompt_tokens=1024,
            max_tokens=max_tokens,
            # On CPU, compiling takes longer than the text.
            enforce_eager=device.type == "cpu",
        ),
    )


def print_evaluations(
    rows: Sequence[Evaluation],
    bursts: Sequence[Burst],
    stages: int,
    temperature: float = 0.0,
) -> None:
    """Print one line per head and prompt set, and tables of the bursts."""
    columns = ["head", "exit layer", "prompts", "tokens", "acceptance"]
    sampled = ["overlap", "argmax drafts"] if temperature else []
    table = Table(*columns, *sampled, f"speedup at {stages} stages")
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            row.head,
            str(row.exit_layer),
            row.prompts,
            str(row.result.rows),
            f"{row.result.acceptance:.3f}",
            *(
                [f"{row.result.overlap:.3f}", f"{row.result.argmax:.3f}"]
                if isinstance(row.result, Sampled)
                else []
            ),
            f"{ideal_speedup(stages, row.result.acceptance):.2f}",
            end_section=after is None or after.head != row.head,
        )
    Console().print(table)
    text = f"text at temperature {temperature:g}, coupled drafts" if temperature else "greedy text"
    Console().print(f"speedup over a plain pipeline of equal stages, n / (α + n(1 - α)); {text}")
    for burst in bursts:
        Console().print(_table_of(burst))


def _table_of(burst: Burst) -> Table:
    behind = "a known token, from the target's final state" if burst.known else "an exit state"
    table = Table(title=f"{burst.head}: bursts behind {behind}", title_justify="left")
    among = [f"among {k} best" for k in BEST]
    again = ["right, kept", "wrong, mended"] if burst.known else []
    for column in ("step", "acceptance", "given all before", *among, *again, "tokens a burst"):
        table.add_column(column)
    for number, step in enumerate(burst.steps, start=1):
        table.add_row(
            str(number),
            f"{step.acceptance:.3f}",
            f"{step.given:.3f}",
            *(f"{step.among[k]:.3f}" for k in BEST),
            *([f"{step.kept:.3f}", f"{step.mended:.3f}"] if burst.known else []),
            f"{burst_tokens(burst.steps, number):.2f}",
        )
    return table
