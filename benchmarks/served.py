"""The acceptance that a served head reaches on prompt sets: what `vllm-ppsd eval` promises.

A pipeline, of two stages unless said, answers every prompt, several at once, and vLLM's
own counters say what was drafted and accepted. In float32, as the text that `eval` judges on.

    python -m benchmarks.served MODEL --prompts FOLDER [--head ppsd] [--temperature 1]
"""

from __future__ import annotations

import argparse
from typing import Any

from vllm import SamplingParams

from benchmarks import arguments
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin, said
from vllm_ppsd.bench.prompts import first_of_each
from vllm_ppsd.tools.prompts import Prompt, chat_tokens


def main() -> None:
    """Serve the prompts and print the table."""
    given = _parser().parse_args()
    llm = engines.start(
        given.model,
        stages=given.stages,
        cores=given.cores.replace(",", "|"),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=24,
        kv_cache_memory_bytes=2**30,
        # Every draft is to be counted, not only those that are worth their while.
        speculative_config={
            "method": "ppsd",
            "model": given.head,
            "draft_sampling": given.draft_sampling,
            "load_adaptive": False,
        },
    )
    sets: dict[str, list[Prompt]] = {}
    for prompt in first_of_each(given.prompts, given.limit):
        sets.setdefault(prompt.source, []).append(prompt)
    sampling = SamplingParams(temperature=given.temperature, max_tokens=given.tokens)
    lines = ["| prompts | drafts | acceptance |", "| --- | --- | --- |"]
    rows: list[dict[str, Any]] = []
    drafted = hit = 0
    for source, prompts in sets.items():
        tokens = [chat_tokens(llm.get_tokenizer(), prompt.text) for prompt in prompts]
        llm.generate([{"prompt_token_ids": t} for t in tokens], sampling)
        drafts, hits = engines.draft_counts(llm)
        rows.append({"set": source, "drafts": drafts - drafted, "hits": hits - hit})
        drafted, hit = drafts, hits
    rows.append({"set": "overall", "drafts": drafted, "hits": hit})
    lines += [f"| {r['set']} | {r['drafts']} | {r['hits'] / r['drafts']:.3f} |" for r in rows]
    report = {"rows": rows} | origin(said("python -m benchmarks.served", given.model))
    deliver(report, "\n".join([*lines, "", footer(report)]), given.json)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=None, tokens=256)
    parser.add_argument("--stages", type=int, default=2, help="of the pipeline")
    parser.add_argument("--temperature", type=float, default=0.0, help="of every request")
    parser.add_argument(
        "--draft-sampling",
        choices=("coupled", "probabilistic", "greedy"),
        default="coupled",
        help="PPSD's",
    )
    return parser


if __name__ == "__main__":
    main()
