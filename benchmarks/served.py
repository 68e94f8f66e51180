"""The acceptance that a served head reaches on prompt sets: what `vllm-ppsd eval` promises.

A pipeline, of two stages unless said, answers every prompt, several at once, and vLLM
counts what was drafted and accepted. In float32, as the text that `eval` judges on.

    python -m benchmarks.served MODEL --prompts FOLDER [--head ppsd] [--temperature 1]
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import arguments
from vllm_ppsd.tools.engines import engine, generate_together
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import markdown_table, origin, portable_command, write_report


def main() -> None:
    """Serve the prompts and print the table."""
    given = _parser().parse_args()
    with engine(
        given.model,
        stages=given.stages,
        cores=arguments.shared_cores(given.stages),
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
    ) as llm:
        sets: dict[str, list[list[int]]] = {}
        for prompt in first_of_each(given.prompts, given.limit):
            tokens = chat_tokens(llm.get_tokenizer(), prompt.text)
            sets.setdefault(prompt.source, []).append(tokens)
        sampling = {"temperature": given.temperature, "ignore_eos": False}
        rows: list[dict[str, Any]] = []
        for source, prompts in sets.items():
            runs = generate_together(llm, prompts, given.tokens, **sampling)
            drafts, hits = sum(run.drafts for run in runs), sum(run.hits for run in runs)
            rows.append({"set": source, "drafts": drafts, "hits": hits})
    drafts, hits = (sum(row[key] for row in rows) for key in ("drafts", "hits"))
    rows.append({"set": "overall", "drafts": drafts, "hits": hits})
    table = markdown_table(
        ["prompts", "drafts", "acceptance"],
        [[r["set"], str(r["drafts"]), f"{r['hits'] / r['drafts']:.2f}"] for r in rows],
    )
    report = {"rows": rows} | origin(portable_command("python -m benchmarks.served", given.model))
    write_report(report, table, given.json)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=None, tokens=256)
    parser.add_argument("--stages", type=int, default=2, help="of the pipeline")
    parser.add_argument("--temperature", type=float, default=0.0, help="of every request")
    parser.add_argument(
        "--draft-sampling",
        choices=("coupled", "greedy"),
        default="coupled",
        help="PPSD's",
    )
    return parser


if __name__ == "__main__":
    main()
