"""The cost model against measured runs: one and several requests, at chosen acceptance rates.

A pipeline of two with the model's exit head, whose drafts a record replaces, so that they
are right as often as asked for. Several requests draft as far as the load policy lets them;
the model weighs all drafting and none by the share of tokens that were drafted, and of plain
decoding says what the groups make in which the requests ran. The policy knows the acceptance
rate when a run begins: one like it, not timed, came before. Every run is traced, and the times
of the parts come from the traces of all of them, since what else the machine does slows parts
and whole alike; the median of the rounds is compared. Prompts are short: what is modelled is
decoding.

    python -m benchmarks.cost_model MODEL [--requests 1 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from benchmarks import arguments
from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.planning.model import plain_pipeline, ppsd
from vllm_ppsd.planning.profile import derive
from vllm_ppsd.planning.times import Profile
from vllm_ppsd.tools.engines import engine, generate, generate_together, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.report import (
    hardware,
    markdown_table,
    origin,
    portable_command,
    write_report,
)
from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import RETIRING, LaneResult, Trace, What

ACCEPTANCES = (0.0, 0.5, 0.7, 0.9, 1.0)
DRAFTS = 1


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    rows, profile = _measure(given)
    report = {"rows": rows, "profile": profile.model_dump()} | origin(
        portable_command("python -m benchmarks.cost_model", given.model)
    )
    write_report(report, render(rows), given.json)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = []
    for row in rows:
        measured = row["times_ms"]
        median = statistics.median(measured)
        lines.append(
            [
                str(row["requests"]),
                "plain" if row["acceptance"] is None else f"{row['acceptance']:.2f}",
                f"{row['drafted']:.2f}",
                f"{median:.1f} ({min(measured):.1f} to {max(measured):.1f})",
                f"{row['model_ms']:.1f}",
                f"{row['model_ms'] / median - 1:+.0%}",
            ]
        )
    return markdown_table(
        ["requests", "acceptance", "drafted", "ms per token (range)", "cost model", "error"], lines
    )


def _measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], Profile]:
    """Return a row per kind of run, and the profile of all rounds."""
    head = find(given.head, given.model)
    partition = head.config.two_stages
    most = max(given.requests)
    prompts = [list(range(100 + 50 * i, 132 + 50 * i)) for i in range(most)]
    sampling = SamplingParams(temperature=0.0, max_tokens=given.tokens, ignore_eos=True)
    asked: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    plain_runs: list[Trace] = []
    runs: dict[tuple[int, float | None], list[Trace]] = {}
    with ExitStack() as stack:

        def start(speculation: dict[str, Any]) -> Any:
            return stack.enter_context(
                engine(
                    given.model,
                    stages=2,
                    dtype=given.dtype,
                    max_num_seqs=most,
                    speculative_config={"method": "ppsd", "model": str(head.path)} | speculation,
                )
            )

        plain = start({"num_speculative_tokens": 0})
        answers = [generate(plain, prompt, given.tokens) for prompt in prompts]
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "record.jsonl"
        write_record(path, [(answer.prompt, answer.tokens) for answer in answers])
        drafting = start({"synthetic_drafter": {"record": str(path), "acceptance": 1.0}})
        kinds = list(product(given.requests, (None, *ACCEPTANCES)))
        with progress("runs") as bar:
            for requests, acceptance in bar.track(kinds * given.repeats):
                llm = plain
                if acceptance is None:
                    # The policy deals requests that do not draft over the stages.
                    plain_runs.append(record(plain, asked[: max(1, requests // 2)], sampling))
                else:
                    llm = drafting
                    drafting.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
                    generate_together(drafting, prompts[:requests], given.tokens)
                settle()
                run = record(llm, asked[:requests], sampling)
                runs.setdefault((requests, acceptance), []).append(run)
    profile = derive(
        Path(given.model).name,
        hardware(),
        partition,
        [*plain_runs, *(t for (_, a), traces in runs.items() for t in traces if a is None)],
        [t for (_, a), traces in runs.items() for t in traces if a is not None],
        head.config,
    )
    return [_row(profile, partition, *kind, traces) for kind, traces in runs.items()], profile


def _row(
    profile: Profile,
    partition: Sequence[int],
    requests: int,
    acceptance: float | None,
    traces: Sequence[Trace],
) -> dict[str, Any]:
    hits, misses, quiet = (
        sum(trace.count(outcome) for trace in traces)
        for outcome in (LaneResult.HIT, LaneResult.MISS, LaneResult.RETIRED)
    )
    drafts = hits + misses
    alpha, drafted = hits / drafts if drafts else acceptance, drafts / (drafts + quiet)
    return {
        "requests": requests,
        "acceptance": alpha,
        "drafts": drafts,
        "drafted": drafted,
        "times_ms": [_ms_per_token(trace) for trace in traces],
        "model_ms": _expected_ms(profile, partition, requests, alpha, drafted, _groups(traces[-1])),
    }


def _expected_ms(
    profile: Profile,
    partition: Sequence[int],
    requests: int,
    alpha: float | None,
    drafted: float,
    arrived: Sequence[int] = (),
) -> float:
    """Return what is expected where a share ``drafted`` of the tokens was."""
    if alpha is None:
        return plain_pipeline(profile, partition, requests, arrived).ms_per_token
    plain = plain_pipeline(profile, partition, requests).ms_per_token
    drafting = ppsd(profile, partition, alpha, DRAFTS, requests).ms_per_token
    return drafted * drafting + (1 - drafted) * plain


def _ms_per_token(trace: Trace) -> float:
    """Return the mean over the requests of the time from first to last token, per token."""
    ends = {span.tick: span.end for span in trace.spans if span.what == What.SAMPLE}
    times: dict[str, list[float]] = {}
    for number, lanes in enumerate(trace.ticks):
        for lane in lanes:
            if lane.outcome in RETIRING:
                times.setdefault(lane.request, []).append(ends[number])
    return statistics.mean((seen[-1] - seen[0]) / (len(seen) - 1) for seen in times.values())


def _groups(trace: Trace) -> list[int]:
    """Return how many requests share a step, group by group, half-way through a plain run."""
    half = len(trace.ticks) // 2
    seen: set[str] = set()
    groups = []
    for lanes in trace.ticks[half:]:
        requests = {lane.request for lane in lanes}
        if requests & seen:
            break
        seen |= requests
        groups.append(len(requests))
    return groups


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    parser.add_argument("--tokens", type=int, default=96, help="output tokens per request")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="at once")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every kind")
    parser.add_argument("--dtype", default="float32", help="of both engines")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
