"""Time to the first token of a long prompt, with PPSD against plain decoding.

Both engines take turns (A B A B …) on prompts of the same length, on one device or,
with ``--stages 2``, in a pipeline.

    python -m benchmarks.first_token MODEL [--prompt-tokens 1000] [--dtype float32]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from tqdm import tqdm

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.bench.report import quartiles
from vllm_ppsd.training.prompts import chat_tokens

FILLER = "Please summarise what the following notes say about the weather, number {}. "


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    plain, ppsd = _measure(given)
    ratios = [b / a for a, b in zip(plain, ppsd, strict=True)]
    report = {
        "plain_ms": plain,
        "ppsd_ms": ppsd,
        "ratio": statistics.median(ratios),
        "quartiles": quartiles(ratios),
    } | origin(
        f"python -m benchmarks.first_token MODEL --prompt-tokens {given.prompt_tokens} "
        f"--repeats {given.repeats} --stages {given.stages} --dtype {given.dtype}"
    )
    deliver(report, f"{render(report)}\n\n{footer(report)}", given.json)


def render(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    first, third = report["quartiles"]
    return "\n".join(
        [
            "| first token, plain (median ms) | PPSD | ratio (median, quartiles) |",
            "| --- | --- | --- |",
            f"| {statistics.median(report['plain_ms']):.0f} "
            f"| {statistics.median(report['ppsd_ms']):.0f} "
            f"| {report['ratio']:.3f} ({first:.3f} to {third:.3f}) |",
        ]
    )


def _measure(given: argparse.Namespace) -> tuple[list[float], list[float]]:
    cores = given.cores if given.stages == 1 else given.cores.replace(",", "|")

    def start(**options: Any) -> Any:
        return engines.start(
            given.model,
            stages=given.stages,
            cores=cores,
            dtype=given.dtype,
            max_num_batched_tokens=2048,
            **options,
        )

    ppsd = start(speculative_config={"method": "ppsd", "model": given.head})
    split = ppsd.llm_engine.vllm_config.speculative_config.layer_partition
    plain = start(partition=split if given.stages > 1 else ())
    times: tuple[list[float], list[float]] = ([], [])
    for number in tqdm(range(given.repeats + 1), desc="rounds"):
        # Every prompt is new, or nothing but its last block would be computed twice.
        text = FILLER.format(number) * given.prompt_tokens
        prompt = chat_tokens(plain.get_tokenizer(), text)[: given.prompt_tokens]
        for engine, found in zip((plain, ppsd), times, strict=True):
            engines.settle()
            seconds = engines.generate(engine, prompt, 8).first_token_seconds
            if number:
                found.append(1000 * seconds)
    return times


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="length of the prompts")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of runs")
    parser.add_argument("--stages", type=int, default=1, help="pipeline size of both engines")
    parser.add_argument("--dtype", default="auto", help="of both engines")
    return parser


if __name__ == "__main__":
    main()
