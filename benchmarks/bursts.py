"""Bursts in a pipeline: PPSD as it decides itself, with lanes of one token, and with fixed bursts.

All engines are alive at once, each in a process of its own, and take turns on every prompt (A B C
A B C …, then backwards). A speedup is the median of the ratios to the plain pipeline's
neighbouring run. ``one process`` is plain decoding on all cores.

    python -m benchmarks.bursts MODEL --prompts FOLDER [--temperatures 0 1] [--fixed 4,0 2,1 …]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks import arguments
from benchmarks.engine_process import EngineProcess, Run, engine_process
from vllm_ppsd.config.cpu_binding import CORES, PARTITION, deal
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import DEFAULTS, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    origin,
    portable_command,
    write_report,
)

HERE = Path(__file__).parent.parent
PLAIN, DEFAULT, EXACT, SINGLE = "plain pipeline", "default", "exact", "one process"


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    by_temperature = _measure(given)
    made = [
        {"temperature": temperature} | row
        for temperature, runs in by_temperature.items()
        for row in rows(runs)
    ]
    report = {"rows": made} | origin(portable_command("python -m benchmarks.bursts", given.model))
    write_report(report, render(report["rows"]), given.json)


def rows(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return a row per way of decoding; runs are paired by their order."""
    made = []
    for name, mine in runs.items():
        drafts, hits = sum(run.drafts for run in mine), sum(run.hits for run in mine)
        pairs = list(zip(runs[PLAIN], mine, strict=True))
        made.append(
            {
                "name": name,
                "times_ms": [run.ms_per_token for run in mine],
                "speedups": [plain.ms_per_token / run.ms_per_token for plain, run in pairs],
                "alpha": hits / drafts if drafts else None,
                "same": sum(plain.tokens == run.tokens for plain, run in pairs),
                "runs": len(pairs),
            }
        )
    return made


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    return markdown_table(
        [
            "temperature",
            "decoding",
            "ms per token (median)",
            "speedup (median, quartiles)",
            "drafts accepted",
            "same tokens as plain",
        ],
        [
            [
                f"{row['temperature']:g}",
                row["name"],
                f"{statistics.median(row['times_ms']):.1f}",
                median_and_quartiles(row["speedups"]),
                "" if row["alpha"] is None else f"{row['alpha']:.2f}",
                f"{row['same']} of {row['runs']}",
            ]
            for row in rows
        ],
    )


def fixed(text: str) -> dict[str, int]:
    """Return the burst of an argument ``reentry,following``."""
    reentry, following = map(int, text.split(","))
    return {"reentry": reentry, "following": following}


def _measure(given: argparse.Namespace) -> dict[float, dict[str, list[Run]]]:
    head = find(given.head, given.model).config
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts = [
        chat_tokens(tokenizer, prompt.text) for prompt in first_of_each(given.prompts, given.limit)
    ]
    ways: dict[str, dict[str, Any]] = {DEFAULT: {}, EXACT: {"exact": True}}
    ways |= {f"burst {text}": {"exact": False, "burst": fixed(text)} for text in given.fixed}
    with ExitStack() as stack:

        def start(stages: int, **options: Any) -> EngineProcess:
            variables = {CORES: deal(sorted(os.sched_getaffinity(0)), stages)}
            if stages > 1:
                variables[PARTITION] = ",".join(map(str, head.two_stages))
            options = DEFAULTS | {"model": given.model, "pipeline_parallel_size": stages} | options
            return stack.enter_context(engine_process(HERE, variables, **options))

        engines = {PLAIN: start(2)}
        for name, options in ways.items():
            speculation = {"method": "ppsd", "model": given.head} | options
            engines[name] = start(2, speculative_config=speculation)
        engines[SINGLE] = start(1)
        for engine in engines.values():
            engine.generate(prompts[0], 32)
        return {
            t: _turns(engines, prompts * given.repeats, given.tokens, t) for t in given.temperatures
        }


def _turns(
    engines: Mapping[str, EngineProcess],
    prompts: Sequence[list[int]],
    tokens: int,
    temperature: float,
) -> dict[str, list[Run]]:
    """Let the engines answer in turns; return the runs of each."""
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    with progress(f"prompts at temperature {temperature:g}") as bar:
        for number, prompt in enumerate(bar.track(prompts)):
            for name, engine in list(engines.items())[:: -1 if number % 2 else 1]:
                settle()
                runs[name].append(engine.generate(prompt, tokens, temperature=temperature))
    return runs


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=2, tokens=256)
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.0], help="of the answers"
    )
    parser.add_argument("--repeats", type=int, default=1, help="turns of every engine")
    parser.add_argument("--fixed", nargs="*", default=[], help="fixed bursts: reentry,following")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
