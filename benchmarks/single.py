"""One device: PPSD with 1 to 5 drafts a round, against plain decoding and n-gram speculation.

Three engines are alive at once and take turns on every prompt; the PPSD engine takes
one turn per number of drafts, and one with its defaults. A speedup is the median of
the ratios to the plain run on the same prompt.

    python -m benchmarks.single MODEL --prompts FOLDER [--head ppsd] [--dtype float32]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.rounds import (
    PLAIN,
    Turn,
    costs,
    interleaved,
    measured_token_cost,
    modelled_draft_cost,
    render,
    summary,
)
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.bench.prompts import first_of_each
from vllm_ppsd.tools.prompts import chat_tokens

NGRAM = "n-gram, 3 drafts"
DRAFTS = (1, 2, 3, 4, 5)


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    report = _measure(given) | origin(
        f"python -m benchmarks.single MODEL --prompts {Path(given.prompts).name} "
        f"--head {Path(given.head).name} --dtype {given.dtype} --limit {given.limit} "
        f"--tokens {given.tokens}"
    )
    table = f"{render(report['rows'])}\n\n{costs(report)} {footer(report)}"
    deliver(report, table, given.json)


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    def start(speculative: dict[str, Any] | None) -> Any:
        return engines.start(
            given.model,
            stages=1,
            cores=given.cores,
            speculative_config=speculative,
            dtype=given.dtype,
            enforce_eager=given.eager,
        )

    plain = start(None)
    ngram = start({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4})
    # The engine whose metrics are read must start last: they live in the process.
    ppsd = start({"method": "ppsd", "model": given.head, "num_speculative_tokens": max(DRAFTS)})
    config = ppsd.llm_engine.vllm_config.speculative_config
    turns = [
        Turn(PLAIN, plain),
        Turn(NGRAM, ngram),
        *(Turn(f"PPSD, K = {k}, all drafted", ppsd, k) for k in DRAFTS),
        Turn(
            f"PPSD, K = {max(DRAFTS)}, threshold {config.draft_threshold:.2f} (default)",
            ppsd,
            max(DRAFTS),
            config.draft_threshold,
        ),
    ]
    asked = first_of_each(given.prompts, given.limit) * given.repeats
    tokenizer = plain.get_tokenizer()
    prompts = [(prompt.source, chat_tokens(tokenizer, prompt.text)) for prompt in asked]
    draft_cost, token_cost = modelled_draft_cost(ppsd), measured_token_cost(plain)
    rows = summary(interleaved(prompts, turns, given.tokens), draft_cost, token_cost)
    return {"rows": rows, "draft_cost": draft_cost, "token_cost": token_cost}


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=8, tokens=96)
    parser.add_argument("--repeats", type=int, default=1, help="times each prompt is asked")
    parser.add_argument("--dtype", default="auto", help="of all engines")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser


if __name__ == "__main__":
    main()
