"""How much later the first token of a long prompt comes with PPSD, in a pipeline or on one device.

Plain decoding and PPSD are alive at once, on the same cores and with the same split of layers, and
take turns (A B, B A, …) on prompts of random tokens, a new one each time. A ratio is PPSD's time to
the first token over plain decoding's of the same turn.

    python -m benchmarks.first_token MODEL [--stages 2 1] [--length 1000] [--repeats 12]
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from transformers import AutoConfig

from benchmarks import arguments
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import engine, generate, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    origin,
    portable_command,
    write_report,
)

PLAIN, PPSD = "plain", "PPSD"
TOKENS = 4
"""Output tokens of a turn."""


def main() -> None:
    """Run both modes and print the table."""
    given = _parser().parse_args()
    rows = [_measure(stages, given) for stages in given.stages]
    command = portable_command("python -m benchmarks.first_token", given.model)
    write_report({"rows": rows} | origin(command), render(rows), given.json)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    return markdown_table(
        ["stages", "prompt tokens", "plain (ms)", "PPSD (ms)", "ratio (median, quartiles)"],
        [
            [
                str(row["stages"]),
                str(row["length"]),
                *(
                    f"{1000 * statistics.median(row['seconds'][name]):.0f}"
                    for name in (PLAIN, PPSD)
                ),
                median_and_quartiles(_ratios(row)),
            ]
            for row in rows
        ],
    )


def _ratios(row: dict[str, Any]) -> list[float]:
    times = row["seconds"]
    return [ours / plain for plain, ours in zip(times[PLAIN], times[PPSD], strict=True)]


def _measure(stages: int, given: Any) -> dict[str, Any]:
    layers = find(given.head, given.model).config.two_stages if stages == 2 else []
    vocabulary = AutoConfig.from_pretrained(given.model).vocab_size
    rng = random.Random(0)
    with ExitStack() as stack:

        def start(speculation: dict[str, Any] | None) -> Any:
            return stack.enter_context(
                engine(
                    given.model,
                    stages=stages,
                    partition=layers,
                    max_num_batched_tokens=max(512, given.length + TOKENS),
                    speculative_config=speculation,
                )
            )

        engines = {PLAIN: start(None), PPSD: start({"method": "ppsd", "model": given.head})}
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        with progress("turns") as bar:
            for turn in bar.track(range(-2, given.repeats)):
                prompt = [rng.randrange(10, vocabulary) for _ in range(given.length)]
                for name, llm in list(engines.items())[:: -1 if turn % 2 else 1]:
                    settle()
                    taken = generate(llm, prompt, TOKENS).first_token_seconds
                    # The first two turns are to warm up.
                    if turn >= 0:
                        seconds[name].append(taken)
    return {"stages": stages, "length": given.length, "seconds": seconds}


def _parser() -> Any:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 1], help="2, or 1: one device")
    parser.add_argument("--length", type=int, default=1000, help="prompt tokens")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each engine")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
