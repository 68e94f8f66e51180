"""The plan against a measured sweep: which exit layer is really fastest in a pipeline of two.

For every exit layer a copy of the model's exit head stands behind it, and a record replaces
its drafts, so that they are right as often as ``--acceptance`` says of that exit. All
pipelines are up at once and take turns with plain decoding.

    python -m benchmarks.layouts MODEL --acceptance a.json --profile p.json [--exit-layers 16 18 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin, said
from vllm_ppsd.bench.prompts import first_of_each
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.planning.plan import Plan, between, plans
from vllm_ppsd.planning.times import read_profile
from vllm_ppsd.tools.prompts import chat_tokens
from vllm_ppsd.drafter.recorded import write_record


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    known = json.loads(given.acceptance.read_text())
    rates = between({int(exit_layer): float(rate) for exit_layer, rate in known.items()})
    planned = plans(read_profile(given.profile), 2, rates)
    expected = {plan.exit_layer: plan for plan in planned}
    unknown = sorted(set(given.exit_layers) - set(expected))
    if unknown:
        raise SystemExit(f"{given.acceptance} tells no acceptance rate for the exits {unknown}")
    report = {"rows": _measure(given, rates, expected)} | origin(
        said("python -m benchmarks.layouts", given.model)
    )
    deliver(report, f"{render(report['rows'])}\n\n{footer(report)}", given.json)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, and how far the plan is from the best."""
    lines = [
        "| exit layer | acceptance | speedup (median, range) | planned | identical |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = min(row["speedups"]), max(row["speedups"])
        lines.append(
            f"| {row['exit_layer']} | {row['acceptance']:.2f} | "
            f"{statistics.median(row['speedups']):.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['planned']:.2f} | {row['identical']} of {len(row['speedups'])} |"
        )
    measured = {row["exit_layer"]: statistics.median(row["speedups"]) for row in rows}
    planned = max(rows, key=lambda row: row["planned"])["exit_layer"]
    share = measured[planned] / max(measured.values())
    lines += ["", f"The plan picks exit {planned}, {share:.2f} of the best measured."]
    return "\n".join(lines)


def _measure(
    given: argparse.Namespace, rates: Mapping[int, float], expected: Mapping[int, Plan]
) -> list[dict[str, Any]]:
    shipped = find(given.head, given.model)
    cores = "|".join(given.cores.split(","))
    plain = engines.start(
        given.model, stages=2, cores=cores, partition=shipped.config.two_stages, dtype=given.dtype
    )
    asked = first_of_each(given.prompts, given.limit)
    prompts = [chat_tokens(plain.get_tokenizer(), prompt.text) for prompt in asked]
    answers = [engines.generate(plain, prompt, given.tokens) for prompt in prompts]
    pipelines = {}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.jsonl"
        write_record(record, [(answer.prompt, answer.tokens) for answer in answers])
        for exit_layer in given.exit_layers:
            drafter = {"record": str(record), "acceptance": rates[exit_layer]}
            head = _behind(shipped, exit_layer, Path(folder) / f"exit-{exit_layer}")
            pipelines[exit_layer] = engines.start(
                given.model,
                stages=2,
                cores=cores,
                dtype=given.dtype,
                speculative_config={
                    "method": "ppsd",
                    "model": str(head),
                    "num_speculative_tokens": expected[exit_layer].drafts,
                    "synthetic_drafter": drafter,
                },
            )
        speedups: dict[int, list[float]] = {}
        identical: dict[int, int] = {}
        for prompt in tqdm(prompts * given.repeats, desc="rounds"):
            engines.settle()
            base = engines.generate(plain, prompt, given.tokens)
            for exit_layer, llm in pipelines.items():
                engines.settle()
                run = engines.generate(llm, prompt, given.tokens)
                speedups.setdefault(exit_layer, []).append(base.ms_per_token / run.ms_per_token)
                same = run.tokens == base.tokens
                identical[exit_layer] = identical.get(exit_layer, 0) + same
    return [
        {
            "exit_layer": exit_layer,
            "acceptance": rates[exit_layer],
            "speedups": speedups[exit_layer],
            "planned": expected[exit_layer].speedup,
            "identical": identical[exit_layer],
        }
        for exit_layer in pipelines
    ]


def _behind(head: ExitHeadFolder, exit_layer: int, folder: Path) -> Path:
    """Write the head for another exit layer: it costs the same, and its drafts are replaced."""
    config = head.config.model_copy(update={"exit_layer": exit_layer})
    save(folder, config, head.tensors())
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=4, tokens=96)
    parser.add_argument("--acceptance", type=Path, required=True, help='JSON, {"18": 0.76, …}')
    parser.add_argument("--profile", type=Path, required=True, help="of `vllm-ppsd profile`")
    parser.add_argument("--exit-layers", type=int, nargs="+", default=[16, 18, 20])
    parser.add_argument("--repeats", type=int, default=2, help="times each prompt is asked")
    parser.add_argument("--dtype", default="auto", help="of all engines")
    return parser


if __name__ == "__main__":
    main()
