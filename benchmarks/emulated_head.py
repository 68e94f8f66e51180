"""Real drafts in pipelines larger than the machine: a model and its head, in stages that sleep.

Every stage computes its layers and then sleeps until they have taken ``--stage-ms``, whatever the
number of tokens; a draft step takes ``--step-share`` of that. So all stages take the same time,
as memory-bound stages on devices of their own would, while what is drafted and accepted is real.
Plain decoding and PPSD take turns on every prompt (A B, B A, …); a speedup is the median of the
ratios.

    python -m benchmarks.emulated_head MODEL --prompts FOLDER [--stages 4 8] [--temperature 1]
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks import arguments, patient_queues
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import Timed, engine, generate, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    origin,
    portable_command,
    write_report,
)


def main() -> None:
    """Run every pipeline size and print the table."""
    given = _parser().parse_args()
    with patient_queues.everywhere():
        rows = [_measure(stages, given) for stages in given.stages]
    command = portable_command("python -m benchmarks.emulated_head", given.model)
    write_report({"rows": rows} | origin(command), render(rows), given.json)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    return markdown_table(
        [
            "stages",
            "temperature",
            "plain, ms per token",
            "PPSD, ms per token",
            "drafts accepted",
            "speedup (median, quartiles)",
            "same tokens as plain",
        ],
        [
            [
                str(row["stages"]),
                f"{row['temperature']:g}",
                f"{statistics.median(row['plain_ms']):.0f}",
                f"{statistics.median(row['ppsd_ms']):.0f}",
                f"{row['hits'] / row['drafts']:.2f}",
                median_and_quartiles(row["speedups"]),
                f"{row['same']} of {len(row['speedups'])}",
            ]
            for row in rows
        ],
    )


def split(config: ExitHeadConfig, stages: int) -> list[int]:
    """Return layers per stage: those before the exit, then the others dealt out evenly."""
    each, more = divmod(config.target.num_hidden_layers - config.exit_layer, stages - 1)
    return [config.exit_layer, *(each + (stage < more) for stage in range(stages - 1))]


def _measure(stages: int, given: Any) -> dict[str, Any]:
    layers = split(find(given.head, given.model).config, stages)
    with ExitStack() as stack:

        def start(**options: Any) -> Any:
            llm: Any = stack.enter_context(
                engine(
                    given.model,
                    partition=layers,
                    cores=arguments.shared_cores(stages),
                    enforce_eager=True,
                    kv_cache_memory_bytes=2**28,
                    speculative_config={"method": "ppsd", "model": given.head} | options,
                )
            )
            seconds = given.stage_ms / 1000
            llm.collective_rpc(_take, args=(seconds, seconds * given.step_share))
            return llm

        plain, drafting = start(num_speculative_tokens=0), start()
        prompts = [
            chat_tokens(plain.get_tokenizer(), prompt.text)
            for prompt in first_of_each(given.prompts, given.limit)
        ]
        answer = partial(
            generate, max_tokens=given.tokens, temperature=given.temperature, seed=given.seed
        )
        pairs: list[tuple[Timed, Timed]] = []
        with progress("prompts") as bar:
            for number, prompt in enumerate(bar.track(prompts)):
                runs = {}
                for llm in (plain, drafting)[:: -1 if number % 2 else 1]:
                    settle()
                    runs[llm] = answer(llm, prompt)
                pairs.append((runs[plain], runs[drafting]))
    return {
        "stages": stages,
        "layers": layers,
        "temperature": given.temperature,
        "plain_ms": [a.ms_per_token for a, _ in pairs],
        "ppsd_ms": [b.ms_per_token for _, b in pairs],
        "speedups": [a.ms_per_token / b.ms_per_token for a, b in pairs],
        "drafts": sum(b.drafts for _, b in pairs),
        "hits": sum(b.hits for _, b in pairs),
        "same": sum(a.tokens == b.tokens for a, b in pairs),
    }


def _take(worker: Any, layers: float, step: float) -> None:
    """Let a worker's layers and its draft steps take so many seconds; runs in the worker."""

    def slow(inner: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            until = time.monotonic() + seconds
            output = inner(*args, **kwargs)
            time.sleep(max(0.0, until - time.monotonic()))
            return output

        return call

    worker.model_runner.model.forward = slow(worker.model_runner.model.forward, layers)
    drafter = worker.ppsd.drafter
    if drafter is None:
        return
    drafter.head.forward = slow(drafter.head.forward, step)
    if drafter.continuation is not None:
        drafter.continuation.forward = slow(drafter.continuation.forward, step)


def _parser() -> Any:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=2, tokens=64)
    parser.add_argument("--stages", type=int, nargs="+", default=[4, 8], help="pipeline sizes")
    parser.add_argument("--stage-ms", type=float, default=100.0, help="what a stage's layers take")
    parser.add_argument(
        "--step-share", type=float, default=0.15, help="of that, what a draft step takes"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    return parser


if __name__ == "__main__":
    # A function goes to the workers, which vLLM must be told to accept.
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
