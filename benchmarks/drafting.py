"""Heads and ways of drafting against each other: acceptance and speed, greedy and sampled.

A pipeline of two for every head and way of drafting: coupled (at temperature 0 that is greedy);
and, of the first head alone, argmax drafts with vLLM's sampler.
All are up at once and take turns with plain decoding; every repetition starts them anew, in turns
forwards and backwards, as one process does the same work a few percent slower than another.
Sampled requests have a seed, so that every pipeline with coupled drafts must write the text of
plain decoding.

    python -m benchmarks.drafting MODEL --heads FOLDER FOLDER --prompts FOLDER
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

from benchmarks import arguments
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import engine, generate, rotated, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    origin,
    portable_command,
    write_report,
)

TEMPERATURES = (0.0, 1.0)
COUPLED, ARGMAX = "coupled", "argmax"
WAYS: dict[str, dict[str, Any]] = {
    COUPLED: {},
    ARGMAX: {"draft_sampling": "greedy"},
}
"""What a way of drafting changes; its name stands behind the head's where that is something."""
OTHER_TEXTS = f", {ARGMAX}"
"""End of the names of pipelines that write other sampled texts."""
WARM_UP = 8
"""Tokens of the first answer of every pipeline, which counts for nothing."""


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    command = portable_command("python -m benchmarks.drafting", given.model)
    report = {"rows": _measure(given)} | origin(command)
    write_report(report, render(report["rows"]), given.json)


def variants(heads: Sequence[str], model: str, ways: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the speculative configs to compare, by name."""
    configs: dict[str, dict[str, Any]] = {}
    for named, (way, change) in product(heads, WAYS.items()):
        if way in ways and (way != ARGMAX or named == heads[0]):
            path = find(named, model).path
            name = path.name + (f", {way}" if change else "")
            configs[name] = {"method": "ppsd", "model": str(path)} | change
    return configs


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = []
    for row in rows:
        rate = f"{row['hits'] / row['drafts']:.2f} of {row['drafts']}" if row["drafts"] else ""
        same = row["identical"]
        lines.append(
            [
                row["name"],
                f"{row['temperature']:g}",
                rate,
                f"{statistics.median(row['times_ms']):.1f}",
                median_and_quartiles(row["speedups"]),
                "" if same is None else f"{same} of {len(row['speedups'])}",
            ]
        )
    return markdown_table(
        ["drafts", "temperature", "acceptance", "ms per token", "speedup (quartiles)", "identical"],
        lines,
    )


def _measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    configs = variants(given.heads, given.model, given.ways)
    plain = next(iter(configs.values())) | {"num_speculative_tokens": 0}
    configs = {"plain": plain} | configs
    rows: dict[tuple[float, str], dict[str, Any]] = {
        key: {"drafts": 0, "hits": 0, "times_ms": [], "speedups": [], "identical": 0}
        for key in product(TEMPERATURES, configs)
        # At temperature 0 all drafts are argmax drafts.
        if key[0] or not key[1].endswith(OTHER_TEXTS)
    }
    partition = find(given.heads[0], given.model).config.two_stages
    for repeat in range(given.repeats):
        ordered = reversed(configs.items()) if repeat % 2 else configs.items()
        with ExitStack() as stack:
            pipelines = {
                name: stack.enter_context(
                    engine(
                        given.model,
                        partition=partition,
                        dtype=given.dtype,
                        speculative_config=config,
                    )
                )
                for name, config in ordered
            }
            _ask(given, pipelines, repeat, rows)
    return [
        {"temperature": temperature, "name": name} | row
        for (temperature, name), row in rows.items()
    ]


def _ask(
    given: argparse.Namespace,
    pipelines: Mapping[str, Any],
    repeat: int,
    rows: Mapping[tuple[float, str], dict[str, Any]],
) -> None:
    """Ask every prompt once at every temperature, and add to the rows what is seen."""
    tokenizer = pipelines["plain"].get_tokenizer()
    asked = first_of_each(given.prompts, given.limit)
    prompts = [chat_tokens(tokenizer, prompt.text) for prompt in asked]
    for pipeline in pipelines.values():
        generate(pipeline, prompts[0], WARM_UP)
    turns = list(product(enumerate(prompts), TEMPERATURES))
    with progress("prompts and temperatures") as bar:
        for turn, ((number, prompt), temperature) in enumerate(bar.track(turns)):
            names = [name for name in pipelines if (temperature, name) in rows]
            sampling = {"temperature": temperature, "seed": 1000 * repeat + number}
            runs = {}
            for name in rotated(names, turn // len(TEMPERATURES) + repeat):
                settle()
                runs[name] = generate(pipelines[name], prompt, given.tokens, **sampling)
            for name, run in runs.items():
                row = rows[temperature, name]
                row["drafts"] += run.drafts
                row["hits"] += run.hits
                row["times_ms"].append(run.ms_per_token)
                row["speedups"].append(runs["plain"].ms_per_token / run.ms_per_token)
                if name.endswith(OTHER_TEXTS):
                    row["identical"] = None
                else:
                    row["identical"] += run.tokens == runs["plain"].tokens


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--heads", nargs="+", default=["ppsd"], help="exit heads, of one layout")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of drafting")
    arguments.add_prompts(parser, limit=2, tokens=128)
    parser.add_argument("--repeats", type=int, default=2, help="times each prompt is asked")
    parser.add_argument("--dtype", default="auto", help="of all engines")
    return parser


if __name__ == "__main__":
    main()
