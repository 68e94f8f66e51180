"""Acceptance of heads on prompt sets, on text that the target writes."""

from __future__ import annotations

from collections.abc import Sequence
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
from vllm_ppsd.training.dataset import StateSet, cached_layers
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


def evaluate(
    heads: Sequence[Path],
    model: str,
    prompts: Sequence[str],
    work: Path,
    device: torch.device,
    max_tokens: int,
    temperature: float = 0.0,
) -> list[Evaluation]:
    """Return the acceptance of every head on every prompt set.

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
    lm_head = read_lm_head(model).to(device) if temperature else None
    rows: list[Evaluation] = []
    for folder in folders:
        states = StateSet(work / "states", folder.config.exit_layer, folder.config.deeper_layers)
        head, vocabulary = trained(folder, model)
        head.to(device)
        sources = sorted({place.source for place in states.documents})
        for source in [*sources, OVERALL]:
            wanted = [d for d in states.documents if source in (d.source, OVERALL)]
            with (
                Console().status(f"{folder.path.name} on {source}"),
                torch.autocast(
                    device.type, torch.bfloat16, enabled=compute_dtype(device) == torch.bfloat16
                ),
            ):
                batches = (
                    states.batch(p, final=lm_head is not None).to(device)
                    for p in pack(wanted, BATCH_TOKENS)
                )
                result = (
                    validate(head, batches, vocabulary)
                    if lm_head is None
                    else judge_sampled(head, batches, vocabulary, lm_head, temperature)
                )
            exit_layer = folder.config.exit_layer
            rows.append(Evaluation(folder.path.name, exit_layer, source, result))
    return rows


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


def print_evaluations(rows: Sequence[Evaluation], stages: int, temperature: float = 0.0) -> None:
    """Print one line per head and prompt set."""
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
