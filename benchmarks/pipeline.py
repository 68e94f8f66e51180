"""Speed of PPSD against plain pipeline decoding at chosen acceptance rates.

Engines are alive at once, each in a process of its own, and take turns on every prompt
(A B C A B C …, then backwards): stock vLLM's plain pipeline, PPSD with the synthetic drafter,
and plain decoding in one process on all cores. A speedup is the median of the ratios of
neighbouring runs, so that a machine whose speed drifts distorts it little. Every output is
compared with the plain pipeline's, token for token.

With ``--against`` PPSD of another checkout of the project takes turns as well, and a second
table has the ratios of both.

    python -m benchmarks.pipeline MODEL [--repeats 5] [--json results.json] [--against FOLDER]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from benchmarks import arguments
from benchmarks.engine_process import EngineProcess, Run, engine_process
from vllm_ppsd.config.cpu_binding import CORES, PARTITION, deal
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.tools.engines import DEFAULTS, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    origin,
    portable_command,
    quartiles,
    write_report,
)

HERE = Path(__file__).parent.parent
ACCEPTANCES = (1.0, 0.7, 0.0)
PLAIN, SINGLE = "plain pipeline", "plain, one process, all cores"


def main() -> None:
    """Run the benchmark, print its tables and draw its picture."""
    given = _parser().parse_args()
    runs = _measure(given)
    command = portable_command("python -m benchmarks.pipeline", given.model)
    report = {"rows": rows(runs)} | origin(command)
    text = render(report["rows"])
    if given.against:
        report["against"] = ratios(runs)
        text += "\n\n" + render_ratios(report["against"])
    write_report(report, text, given.json)
    if given.picture:
        draw(report, given.picture)


def ours(acceptance: float) -> str:
    """Return the name of PPSD's row."""
    return f"PPSD, p = {acceptance}"


def theirs(acceptance: float) -> str:
    """Return the name of the row of the other checkout's PPSD."""
    return f"PPSD of the other checkout, p = {acceptance}"


def rows(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return a row per kind of decoding from its runs, which are paired by their order."""
    plain = runs[PLAIN]
    made = []
    for name, mine in runs.items():
        times = [run.ms_per_token for run in mine]
        drafts = sum(run.drafts for run in mine)
        alpha = sum(run.hits for run in mine) / drafts if drafts else None
        speedups = [a.ms_per_token / b.ms_per_token for a, b in zip(plain, mine, strict=True)]
        speedup = statistics.median(speedups)
        same = [run.tokens for run in mine] == [run.tokens for run in plain]
        made.append(
            {
                "name": name,
                "median_ms": statistics.median(times),
                "range_ms": [min(times), max(times)],
                "times_ms": times,
                "alpha": alpha,
                "speedup": speedup,
                "quartiles": quartiles(speedups),
                "of_ideal": None if alpha is None else speedup / ideal_speedup(2, alpha),
                "identical": "yes" if same else "other kernels" if name == SINGLE else "no",
            }
        )
    return made


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = []
    for row in rows:
        low, high = row["range_ms"]
        first, third = row["quartiles"]
        lines.append(
            [
                row["name"],
                f"{row['median_ms']:.1f} ({low:.1f} to {high:.1f})",
                "" if row["alpha"] is None else f"{row['alpha']:.2f}",
                f"{row['speedup']:.2f} ({first:.2f} to {third:.2f})",
                "" if row["of_ideal"] is None else f"{row['of_ideal']:.2f}",
                row["identical"],
            ]
        )
    return markdown_table(
        [
            "",
            "ms per token (median, range)",
            "acceptance",
            "speedup (median, quartiles)",
            "of the ideal",
            "identical",
        ],
        lines,
    )


def ratios(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Return by acceptance rate the time per token over the other checkout's, run by run."""
    return {
        str(p): [
            new.ms_per_token / old.ms_per_token
            for new, old in zip(runs[ours(p)], runs[theirs(p)], strict=True)
        ]
        for p in ACCEPTANCES
    }


def render_ratios(by_acceptance: Mapping[str, Sequence[float]]) -> str:
    """Return ``ratios`` as a Markdown table."""
    return markdown_table(
        ["p", "time per token, this checkout / the other (median, quartiles)", "pairs"],
        [
            [p, median_and_quartiles(values), str(len(values))]
            for p, values in by_acceptance.items()
        ],
    )


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw measured speedup over acceptance rate, beside the ideal curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_name = {row["name"]: row for row in report["rows"]}
    measured = [by_name[ours(p)] for p in ACCEPTANCES]
    speedups = [row["speedup"] for row in measured]
    low, high = zip(*(row["quartiles"] for row in measured), strict=True)
    alphas = [i / 100 for i in range(101)]
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(alphas, [ideal_speedup(2, a) for a in alphas], "0.6", label="ideal, n / (α + n(1-α))")
    axes.errorbar(
        [row["alpha"] for row in measured],
        speedups,
        yerr=[
            [median - first for median, first in zip(speedups, low, strict=True)],
            [third - median for median, third in zip(speedups, high, strict=True)],
        ],
        fmt="o",
        capsize=4,
        label="PPSD, measured (median, quartiles)",
    )
    axes.axhline(1, color="C3", linestyle="--", label="plain pipeline, 2 stages")
    axes.axhline(by_name[SINGLE]["speedup"], color="C2", linestyle=":", label=SINGLE)
    axes.set_xlabel("acceptance rate α")
    axes.set_ylabel("speedup over plain pipeline decoding")
    axes.set_title(f"One request, two pipeline stages, {report['cpu']}", fontsize=10)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _measure(given: argparse.Namespace) -> dict[str, list[Run]]:
    layers = AutoConfig.from_pretrained(given.model).num_hidden_layers
    partition = f"{given.exit_layer},{layers - given.exit_layer}"
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts = [
        chat_tokens(tokenizer, prompt.text) for prompt in first_of_each(given.prompts, given.limit)
    ]
    with ExitStack() as stack:

        def start(checkout: Path, stages: int, **options: Any) -> EngineProcess:
            variables = {CORES: deal(sorted(os.sched_getaffinity(0)), stages)}
            if stages > 1:
                variables[PARTITION] = partition
            options = DEFAULTS | {"model": given.model, "pipeline_parallel_size": stages} | options
            return stack.enter_context(engine_process(checkout, variables, **options))

        single, plain = start(HERE, 1), start(HERE, 2)
        single.generate(prompts[0], 8)
        recorded = [plain.generate(prompt, given.tokens).tokens for prompt in prompts]
        record = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "record.jsonl"
        write_record(record, zip(prompts, recorded, strict=True))
        speculation = {
            "method": "ppsd",
            "exit_layer": given.exit_layer,
            "synthetic_drafter": {"record": str(record), "acceptance": 1.0},
        }
        new = start(HERE, 2, speculative_config=speculation)
        turns: list[tuple[str, EngineProcess, float | None]] = [(PLAIN, plain, None)]
        other = start(given.against, 2, speculative_config=speculation) if given.against else None
        for p in ACCEPTANCES:
            turns += [(ours(p), new, p)] + ([(theirs(p), other, p)] if other else [])
        turns.append((SINGLE, single, None))
        runs: dict[str, list[Run]] = {name: [] for name, *_ in turns}
        with progress("prompts") as bar:
            for number, prompt in enumerate(bar.track(prompts * given.repeats)):
                for name, engine, acceptance in turns[:: -1 if number % 2 else 1]:
                    settle()
                    runs[name].append(engine.generate(prompt, given.tokens, acceptance))
    return runs


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.add_argument("model", help="folder of the model")
    arguments.add_prompts(parser, limit=None, tokens=96)
    parser.add_argument("--exit-layer", type=int, default=17, help="layers on stage 0")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every engine")
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--picture", type=Path, help="draw the speedups (PNG)")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
