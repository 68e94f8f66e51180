"""One device: PPSD with 1 to 5 drafts a step, against plain decoding and n-gram speculation.

Three engines are alive at once and take turns on every prompt; the PPSD engine takes
one turn per number of drafts. A speedup is the median of the ratios to the plain run
on the same prompt.

    python -m benchmarks.single MODEL --prompts FOLDER [--head ppsd] [--dtype float32]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import engines
from benchmarks.engines import Timed
from benchmarks.prompt_sets import OWN, first_of_each
from benchmarks.report import deliver, footer, origin
from vllm_ppsd.training.prompts import chat_tokens

PLAIN, NGRAM = "plain", "n-gram, 3 drafts"
DRAFTS = (1, 2, 3, 4, 5)


@dataclass
class Seen:
    """The runs of one kind of decoding on one prompt set."""

    runs: list[Timed] = field(default_factory=list)
    drafts: int = 0
    hits: int = 0


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _parser().parse_args()
    report = _report(arguments, _measure(arguments))
    deliver(report, render(report), arguments.json)


def render(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        "| prompts | decoding | ms per token | acceptance | tokens per pass | speedup "
        "(median, quartiles) | identical |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        first, third = row["quartiles"]
        alpha = "" if row["alpha"] is None else f"{row['alpha']:.2f}"
        lines.append(
            f"| {row['set']} | {row['name']} | {row['median_ms']:.1f} | {alpha} "
            f"| {row['tokens_per_pass']:.2f} | {row['speedup']:.2f} ({first:.2f} to {third:.2f}) "
            f"| {row['identical']} of {row['runs']} |"
        )
    return "\n".join([*lines, "", footer(report)])


def _measure(arguments: argparse.Namespace) -> dict[tuple[str, str], Seen]:
    options = {"dtype": arguments.dtype, "enforce_eager": arguments.eager}

    def start(speculative: dict[str, Any] | None) -> Any:
        return engines.start(
            arguments.model,
            stages=1,
            cores=arguments.cores,
            speculative_config=speculative,
            **options,
        )

    plain = start(None)
    ngram = start({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4})
    # The engine whose metrics are read must start last: they live in the process.
    ppsd = start(
        {"method": "ppsd", "model": arguments.head, "num_speculative_tokens": max(DRAFTS)}
        | {"draft_threshold": arguments.threshold}
    )
    found: dict[tuple[str, str], Seen] = {}
    prompts = first_of_each(arguments.prompts, arguments.limit)
    for prompt in tqdm(prompts * arguments.repeats, desc="prompts"):
        tokens = chat_tokens(plain.get_tokenizer(), prompt.text)
        for name, engine, drafts in [
            (PLAIN, plain, None),
            (NGRAM, ngram, None),
            *((f"PPSD, {k} draft{'s'[: k - 1]}", ppsd, k) for k in DRAFTS),
        ]:
            seen = found.setdefault((prompt.source, name), Seen())
            engines.settle(0.5)
            if drafts is not None:
                engine.collective_rpc("set_drafts", args=(drafts,))
                before = engines.draft_counts(engine)
            seen.runs.append(engines.generate(engine, tokens, arguments.tokens))
            if drafts is not None:
                after = engines.draft_counts(engine)
                seen.drafts += after[0] - before[0]
                seen.hits += after[1] - before[1]
    return found


def _report(arguments: argparse.Namespace, found: dict[tuple[str, str], Seen]) -> dict[str, Any]:
    rows = []
    for (source, name), seen in found.items():
        plain = found[source, PLAIN].runs
        ratios = [
            one.ms_per_token / other.ms_per_token
            for one, other in zip(plain, seen.runs, strict=True)
        ]
        same = [a.tokens == b.tokens for a, b in zip(plain, seen.runs, strict=True)]
        rows.append(
            {
                "set": source,
                "name": name,
                "median_ms": statistics.median(r.ms_per_token for r in seen.runs),
                "alpha": seen.hits / seen.drafts if seen.drafts else None,
                "tokens_per_pass": sum(len(r.tokens) - 1 for r in seen.runs)
                / sum(r.passes for r in seen.runs),
                "speedup": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, method="inclusive")[::2],
                "identical": sum(same),
                "runs": len(same),
            }
        )
    return {"rows": rows} | origin(
        f"python -m benchmarks.single MODEL --prompts {Path(arguments.prompts).name} "
        f"--head {Path(arguments.head).name} --dtype {arguments.dtype} --limit {arguments.limit} "
        f"--tokens {arguments.tokens} --threshold {arguments.threshold}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--head", default="ppsd", help="exit head")
    parser.add_argument("--prompts", type=Path, default=OWN, help="JSONL file or folder")
    parser.add_argument("--limit", type=int, default=8, help="prompts per set")
    parser.add_argument("--repeats", type=int, default=1, help="times each prompt is asked")
    parser.add_argument("--tokens", type=int, default=96, help="output tokens per prompt")
    parser.add_argument("--threshold", type=float, default=0.0, help="draft_threshold")
    parser.add_argument("--dtype", default="auto", help="of all engines")
    parser.add_argument("--cores", default="0,1", help="cores of every engine")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", help="write all numbers to this file")
    return parser


if __name__ == "__main__":
    main()
