"""Speed of PPSD against plain pipeline decoding, at chosen acceptance rates or with a head.

Three engines are alive at once and take turns on every prompt (A B C A B C …):
stock vLLM's plain pipeline, PPSD with the synthetic drafter (with ``--head``, with
that exit head), and plain decoding in one process on all cores. A speedup is the
median of the ratios of neighbouring runs, so that a machine whose speed drifts
distorts it little. Every output is compared with the plain pipeline's, token for
token.

    python -m benchmarks.pipeline MODEL [--repeats 5] [--json results.json]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.engines import Timed
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.bench.prompts import OWN, first_of_each
from vllm_ppsd.bench.report import quartiles
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.tools.prompts import chat_tokens
from vllm_ppsd.drafter.recorded import write_record

ACCEPTANCES = (1.0, 0.7, 0.0)
PLAIN, SINGLE = "plain pipeline", "plain, one process, all cores"


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    runs, alphas = _measure(given)
    report = _report(given, runs, alphas)
    deliver(report, render(report), given.json)


def render(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        "| | ms per token (median, range) | acceptance | speedup (median, quartiles) "
        "| of the ideal | identical |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        low, high = row["range_ms"]
        first, third = row["quartiles"]
        alpha = "" if row["alpha"] is None else f"{row['alpha']:.2f}"
        share = "" if row["of_ideal"] is None else f"{row['of_ideal']:.2f}"
        lines.append(
            f"| {row['name']} | {row['median_ms']:.1f} ({low:.1f} to {high:.1f}) | {alpha} "
            f"| {row['speedup']:.2f} ({first:.2f} to {third:.2f}) | {share} | {row['identical']} |"
        )
    return "\n".join([*lines, "", footer(report)])


def _measure(given: argparse.Namespace) -> tuple[dict[str, list[Timed]], dict[str, float]]:
    cores = given.cores.split(",")
    partition = [given.exit_layer, given.layers - given.exit_layer]
    eager = {"enforce_eager": given.eager}
    plain_options: dict[str, Any] = dict(eager)
    if given.eager:
        # Stock vLLM cannot run an eager CPU pipeline: its warm-up allocates nothing.
        plain_options["speculative_config"] = {
            "method": "ppsd",
            "num_speculative_tokens": 0,
            "exit_layer": given.exit_layer,
        }
    # The engine whose metrics are read must start last: they live in the process.
    single = engines.start(given.model, stages=1, cores=",".join(cores), **eager)
    plain = engines.start(
        given.model, stages=2, cores="|".join(cores), partition=partition, **plain_options
    )
    asked = first_of_each(given.prompts, given.limit)
    prompts = [chat_tokens(plain.get_tokenizer(), prompt.text) for prompt in asked]
    engines.generate(single, prompts[0], 8)
    recorded = [engines.generate(plain, p, given.tokens) for p in prompts]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.jsonl"
        write_record(record, [(r.prompt, r.tokens) for r in recorded])
        synthetic = {
            "exit_layer": given.exit_layer,
            "synthetic_drafter": {"record": str(record), "acceptance": 1.0},
        }
        drafter = {"model": given.head} if given.head else synthetic
        ppsd = engines.start(
            given.model,
            stages=2,
            cores="|".join(cores),
            speculative_config={"method": "ppsd"} | drafter,
            **eager,
        )
    runs: dict[str, list[Timed]] = {}
    counts: dict[str, list[tuple[int, int]]] = {}
    turns: list[tuple[str, Any, float | None]] = [
        (PLAIN, plain, None),
        *(
            [(f"PPSD, {Path(given.head).name}", ppsd, None)]
            if given.head
            else [(f"PPSD, p = {p}", ppsd, p) for p in ACCEPTANCES]
        ),
        (SINGLE, single, None),
    ]
    for prompt in tqdm(prompts * given.repeats, desc="rounds"):
        for name, engine, acceptance in turns:
            engines.settle()
            if acceptance is not None:
                engine.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            if engine is ppsd:
                before = engines.draft_counts(engine)
            runs.setdefault(name, []).append(engines.generate(engine, prompt, given.tokens))
            if engine is ppsd:
                after = engines.draft_counts(engine)
                counts.setdefault(name, []).append((after[0] - before[0], after[1] - before[1]))
    alphas = {
        name: sum(hits for _, hits in seen) / sum(drafts for drafts, _ in seen)
        for name, seen in counts.items()
    }
    return runs, alphas


def _report(
    given: argparse.Namespace, runs: dict[str, list[Timed]], alphas: dict[str, float]
) -> dict[str, Any]:
    expected = {tuple(r.prompt): r.tokens for r in runs[PLAIN]}
    base = [r.ms_per_token for r in runs[PLAIN]]
    rows = []
    for name, seen in runs.items():
        times = [r.ms_per_token for r in seen]
        alpha = alphas.get(name)
        ratios = [plain / time for plain, time in zip(base, times, strict=True)]
        speedup = statistics.median(ratios)
        same = all(r.tokens == expected[tuple(r.prompt)] for r in seen)
        rows.append(
            {
                "name": name,
                "median_ms": statistics.median(times),
                "range_ms": [min(times), max(times)],
                "times_ms": times,
                "alpha": alpha,
                "speedup": speedup,
                "quartiles": quartiles(ratios),
                "of_ideal": None if alpha is None else speedup / ideal_speedup(2, alpha),
                "identical": "yes" if same else ("no" if alpha is not None else "other kernels"),
            }
        )
    command = (
        f"python -m benchmarks.pipeline MODEL --exit-layer {given.exit_layer} "
        f"--repeats {given.repeats} --tokens {given.tokens}"
    )
    if given.head:
        command += f" --head {Path(given.head).name}"
    if given.prompts != OWN:
        command += f" --prompts {Path(given.prompts).name} --limit {given.limit}"
    if given.eager:
        command += " --eager"
    return {"rows": rows} | origin(command)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_prompts(parser, limit=None, tokens=96)
    parser.add_argument("model", help="folder of the demo model")
    parser.add_argument("--head", help="exit head to draft with, made for --exit-layer")
    parser.add_argument("--layers", type=int, default=30, help="decoder layers of the model")
    parser.add_argument("--exit-layer", type=int, default=17, help="layers on stage 0")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every engine")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser


if __name__ == "__main__":
    main()
