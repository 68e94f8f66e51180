"""Heads and ways of drafting against each other: acceptance and speed, greedy and sampled.

A pipeline of two for every head and way of drafting: coupled (at temperature 0 that is greedy);
probabilistic; argmax drafts with vLLM's sampler, of the first head alone; and, of multi-depth
heads, not waiting for deeper states.
All are up at once and take turns with plain decoding; every repetition starts them anew, in turns
forwards and backwards, as one process does the same work a few percent slower than another.
Sampled requests have a seed, so that every pipeline with coupled drafts must write the text of
plain decoding.

    python -m benchmarks.drafting MODEL --heads FOLDER FOLDER --prompts FOLDER
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Sequence
from itertools import product
from typing import Any

from tqdm import tqdm

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin, said
from vllm_ppsd.bench.prompts import first_of_each
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.prompts import chat_tokens

TEMPERATURES = (0.0, 1.0)
COUPLED, ARGMAX, PROBABILISTIC, ARRIVED = "coupled", "argmax", "probabilistic", "not waiting"
WAYS: dict[str, dict[str, Any]] = {
    COUPLED: {},
    ARGMAX: {"draft_sampling": "greedy"},
    PROBABILISTIC: {"draft_sampling": "probabilistic"},
    ARRIVED: {"feedback": "arrived"},
}
"""What a way of drafting changes; its name stands behind the head's where that is something."""
OTHER_TEXTS = (f", {ARGMAX}", f", {PROBABILISTIC}")
"""Ends of the names of pipelines that write other sampled texts."""
WARM_UP = 8
"""Tokens of the first answer of every pipeline, which counts for nothing."""


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    report = {"rows": _measure(given)} | origin(said("python -m benchmarks.drafting", given.model))
    deliver(report, f"{render(report['rows'])}\n\n{footer(report)}", given.json)


def variants(heads: Sequence[str], model: str, ways: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the speculative configs to compare, by name."""
    found: dict[str, dict[str, Any]] = {}
    for named in heads:
        head = find(named, model)
        options = {"method": "ppsd", "model": str(head.path)}
        applies = {COUPLED: True, ARGMAX: named == heads[0], PROBABILISTIC: True}
        applies[ARRIVED] = bool(head.config.deeper_layers)
        found |= {
            head.path.name + (f", {way}" if change else ""): options | change
            for way, change in WAYS.items()
            if way in ways and applies[way]
        }
    return found


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| drafts | temperature | acceptance | ms per token | speedup (quartiles) | identical |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, median, high = statistics.quantiles(row["speedups"], n=4)
        rate = f"{row['hits'] / row['drafts']:.3f} of {row['drafts']}" if row["drafts"] else ""
        same = (
            f"{row['identical']} of {len(row['speedups'])}" if row["identical"] is not None else ""
        )
        lines.append(
            f"| {row['name']} | {row['temperature']:g} | {rate} "
            f"| {statistics.median(row['times_ms']):.1f} | {median:.2f} ({low:.2f} to {high:.2f}) "
            f"| {same} |"
        )
    return "\n".join(lines)


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
    for repeat in range(given.repeats):
        pipelines = _start(given, dict(reversed(configs.items())) if repeat % 2 else configs)
        try:
            _ask(given, pipelines, repeat, rows)
        finally:
            for pipeline in pipelines.values():
                engines.stop(pipeline)
    return [
        {"temperature": temperature, "name": name} | row
        for (temperature, name), row in rows.items()
    ]


def _start(given: argparse.Namespace, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    partition = find(given.heads[0], given.model).config.two_stages
    return {
        name: engines.start(
            given.model,
            stages=2,
            cores="|".join(given.cores.split(",")),
            partition=partition,
            dtype=given.dtype,
            speculative_config=config,
            **engines.PER_REQUEST,
        )
        for name, config in configs.items()
    }


def _ask(
    given: argparse.Namespace,
    pipelines: dict[str, Any],
    repeat: int,
    rows: dict[tuple[float, str], dict[str, Any]],
) -> None:
    """Ask every prompt once at every temperature, and add to the rows what is seen."""
    tokenizer = pipelines["plain"].get_tokenizer()
    asked = first_of_each(given.prompts, given.limit)
    prompts = [chat_tokens(tokenizer, prompt.text) for prompt in asked]
    for pipeline in pipelines.values():
        engines.generate(pipeline, prompts[0], WARM_UP)
    turns = list(product(enumerate(prompts), TEMPERATURES))
    for turn, ((number, prompt), temperature) in enumerate(tqdm(turns, desc="rounds")):
        names = [name for name in pipelines if (temperature, name) in rows]
        runs = {}
        for name in engines.rotated(names, turn // len(TEMPERATURES) + repeat):
            engines.settle()
            seed = 1000 * repeat + number
            runs[name] = engines.generate(pipelines[name], prompt, given.tokens, temperature, seed)
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
