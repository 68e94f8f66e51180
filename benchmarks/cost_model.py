"""The cost model against measured runs: one and several requests, at chosen acceptance rates.

A pipeline of two with the model's exit head, whose drafts a record replaces, so that they
are right as often as asked for. Several requests draft as far as the load policy lets them;
the model says the better of all drafting and none, and of plain decoding what the groups make
in which the requests were traced. The times of the parts come from traces
of the same engines answering the same prompts, which are short: what is modelled is
decoding. Traces and runs take turns, and a round's runs are held against its own traces: what
else the machine does slows both.

    python -m benchmarks.cost_model MODEL [--requests 1 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm
from vllm import SamplingParams

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin, said
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.planning.hardware import hardware
from vllm_ppsd.planning.model import plain_pipeline, ppsd
from vllm_ppsd.planning.profile import derive
from vllm_ppsd.planning.simulate import Simulation
from vllm_ppsd.planning.times import Profile
from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import Trace
from vllm_ppsd.worker.synthetic import write_record

ACCEPTANCES = (0.0, 0.5, 0.7, 0.9, 1.0)
DRAFTS = 1


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    rows, profiles = _measure(given)
    report = {"rows": rows, "profiles": profiles} | origin(
        said("python -m benchmarks.cost_model", given.model)
    )
    deliver(report, f"{render(rows)}\n\n{footer(report)}", given.json)


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; errors are medians of the rounds' own."""
    lines = [
        "| requests | acceptance | ms per token (range) | cost model | error | simulator | error |",
        "| " + "--- | " * 7,
    ]
    for row in rows:
        measured = row["times_ms"]
        alpha = "plain" if row["acceptance"] is None else f"{row['acceptance']:.2f}"
        lines.append(
            f"| {row['requests']} | {alpha} | {statistics.median(measured):.1f} "
            f"({min(measured):.1f} to {max(measured):.1f}) | {_beside(row['model_ms'], measured)} "
            f"| {_beside(row['simulated_ms'], measured)} |"
        )
    return "\n".join(lines)


def _beside(expected: Sequence[float | None], measured: Sequence[float]) -> str:
    """Return the cells of what was expected round by round: its median, and its error's."""
    known = [(e, m) for e, m in zip(expected, measured, strict=True) if e is not None]
    if not known:
        return " | "
    error = statistics.median(e / m - 1 for e, m in known)
    return f"{statistics.median(e for e, _ in known):.1f} | {error:+.0%}"


def _measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row per kind of run, and the profile of every round."""
    head = find(given.head, given.model)
    partition = head.config.two_stages
    most = max(given.requests)
    prompts = [list(range(100 + 50 * i, 132 + 50 * i)) for i in range(most)]

    def start(speculation: dict[str, Any]) -> Any:
        return engines.start(
            given.model,
            stages=2,
            cores="|".join(given.cores.split(",")),
            dtype=given.dtype,
            max_num_seqs=most,
            speculative_config={"method": "ppsd", "model": str(head.path)} | speculation,
        )

    plain = start({"num_speculative_tokens": 0})
    answers = [engines.generate(plain, prompt, given.tokens) for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        write_record(path, [(answer.prompt, answer.tokens) for answer in answers])
        synthetic = {"record": str(path), "acceptance": 1.0}
        drafting = start({"synthetic_drafter": synthetic})
    rows: dict[tuple[int, float | None], dict[str, Any]] = {}
    counts: dict[tuple[int, float | None], list[int]] = {}
    profiles = []
    kinds = list(product(given.requests, (None, *ACCEPTANCES)))
    rounds = tqdm(total=given.repeats * len(kinds), desc="runs")
    for _ in range(given.repeats):
        drafting.collective_rpc("set_synthetic_acceptance", args=(1.0,))
        profile, groups = _profile(given, partition, prompts, plain, drafting)
        profiles.append(profile.model_dump())
        for requests, acceptance in kinds:
            engines.settle()
            llm = plain if acceptance is None else drafting
            if acceptance is not None:
                drafting.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            before = engines.draft_counts(drafting)
            runs = engines.generate_together(llm, prompts[:requests], given.tokens)
            after = engines.draft_counts(drafting)
            drafts, hits = after[0] - before[0], after[1] - before[1]
            # With no drafts at all the policy has found that they do not pay.
            alpha = hits / drafts if drafts else acceptance
            row = rows.setdefault(
                (requests, acceptance),
                {"requests": requests, "times_ms": [], "model_ms": [], "simulated_ms": []},
            )
            row["times_ms"].append(statistics.mean(run.ms_per_token for run in runs))
            expected = _expected(profile, partition, requests, alpha, groups[requests])
            for name, value in expected.items():
                row[name].append(value)
            seen = counts.setdefault((requests, acceptance), [0, 0])
            seen[0] += drafts
            seen[1] += hits
            rounds.update()
    for (requests, acceptance), (drafts, hits) in counts.items():
        alpha = hits / drafts if drafts else acceptance
        rows[requests, acceptance] |= {"acceptance": alpha, "drafts": drafts}
    return list(rows.values()), profiles


def _expected(
    profile: Profile,
    partition: Sequence[int],
    requests: int,
    alpha: float | None,
    arrived: Sequence[int] = (),
) -> dict[str, Any]:
    groups = arrived if alpha is None else ()
    plain = plain_pipeline(profile, partition, requests, groups).ms_per_token
    drafting = math.inf
    if alpha is not None:
        drafting = ppsd(profile, partition, alpha, DRAFTS, requests).ms_per_token
    found = min(plain, drafting) if requests > 1 or alpha is None else drafting
    played = None
    if requests == 1 and alpha is not None:
        played = Simulation(profile, partition, alpha, DRAFTS, tokens=2000).run().ms_per_token()
    return {"model_ms": found, "simulated_ms": played}


def _profile(
    given: argparse.Namespace,
    partition: Sequence[int],
    prompts: Sequence[Sequence[int]],
    plain: Any,
    drafting: Any,
) -> tuple[Profile, dict[int, list[int]]]:
    """Trace steps of as many lanes as the runs will have; return the groups of plain ones too."""
    sampling = SamplingParams(temperature=0.0, max_tokens=given.tokens, ignore_eos=True)
    lanes = sorted({1, *given.requests, *(max(1, n // 2) for n in given.requests)})
    asked: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    ours, theirs = (
        {n: record(llm, asked[:n], sampling) for n in lanes} for llm in (drafting, plain)
    )
    profile = derive(Path(given.model).name, hardware(), partition, theirs, ours)
    return profile, {n: _groups(trace) for n, trace in theirs.items()}


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
