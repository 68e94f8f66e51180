"""One device: PPSD with 1 to 5 drafts a round, against plain decoding and n-gram speculation.

Three engines are alive at once and take turns on every prompt; the PPSD engine takes
one turn per number of drafts, and one with its defaults. A speedup is the median of
the ratios to the plain run on the same prompt. A round is one full pass with the drafts
before it; its cost is counted in steps of plain decoding on the same prompt, as the cost
model counts it.

    python -m benchmarks.single MODEL --prompts FOLDER [--head ppsd] [--dtype float32]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import arguments
from vllm_ppsd.config.entry import model_shape
from vllm_ppsd.costs import round_cost
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.tools.engines import Timed, engine, generate, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import (
    markdown_table,
    origin,
    portable_command,
    quartiles,
    write_report,
)

PLAIN, NGRAM = "plain", "n-gram, 3 drafts"
ALL = "all"
DRAFTS = (1, 2, 3, 4, 5)

Runs = Mapping[tuple[str, str], Sequence[Timed]]
"""Runs by prompt set and name of the row, in the order of the prompts."""


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    report = _measure(given) | origin(portable_command("python -m benchmarks.single", given.model))
    costs = (
        f"In the cost model a draft costs {report['draft_cost']:.2f} of a plain step (from the "
        f"weights it reads) and a further token in a pass {report['token_cost']:.3f} (measured "
        "on plain decoding's engine)."
    )
    write_report(report, f"{render(report['rows'])}\n\n{costs}", given.json)


def summary(runs: Runs, draft_cost: float, token_cost: float) -> list[dict[str, Any]]:
    """Return a row per prompt set and kind of decoding, and with several sets one for all.

    Args:
        runs: ``PLAIN`` among them.
        draft_cost: cost of a draft in full passes, by the cost model.
        token_cost: of ``measured_token_cost``.
    """
    rows = []
    runs = dict(runs) | _pooled(runs)
    for (source, name), mine in runs.items():
        pairs = list(zip(runs[source, PLAIN], mine, strict=True))
        ratios = [plain.ms_per_token / run.ms_per_token for plain, run in pairs]
        rounds = [run.ms_per_pass / plain.ms_per_token for plain, run in pairs]
        passes = sum(run.passes for run in mine)
        drafts = sum(run.drafts for run in mine)
        drafted = drafts / passes
        rows.append(
            {
                "set": source,
                "name": name,
                "median_ms": statistics.median(run.ms_per_token for run in mine),
                "acceptance": sum(run.hits for run in mine) / drafts if drafts else None,
                "drafts_per_round": drafted,
                "tokens_per_round": sum(len(run.tokens) - 1 for run in mine) / passes,
                "round": statistics.median(rounds),
                "round_expected": round_cost(drafted, draft_cost, token_cost) if drafts else None,
                "speedup": statistics.median(ratios),
                "quartiles": quartiles(ratios),
                "speedups": ratios,
                "rounds": rounds,
                "identical": sum(plain.tokens == run.tokens for plain, run in pairs),
                "runs": len(pairs),
            }
        )
    return rows


def _pooled(runs: Runs) -> dict[tuple[str, str], list[Timed]]:
    """Return every kind of decoding over all prompt sets, if there are several."""
    pooled: dict[tuple[str, str], list[Timed]] = {}
    if len({source for source, _ in runs}) > 1:
        for (_, name), mine in runs.items():
            pooled.setdefault((ALL, name), []).extend(mine)
    return pooled


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of ``summary`` as a Markdown table."""
    lines = []
    for row in rows:
        first, third = row["quartiles"]
        expected = "" if row["round_expected"] is None else f" ({row['round_expected']:.2f})"
        lines.append(
            [
                row["set"],
                row["name"],
                f"{row['median_ms']:.1f}",
                "" if row["acceptance"] is None else f"{row['acceptance']:.2f}",
                f"{row['tokens_per_round']:.2f}",
                f"{row['round']:.2f}{expected}",
                f"{row['speedup']:.2f} ({first:.2f} to {third:.2f})",
                f"{row['identical']} of {row['runs']}",
            ]
        )
    return markdown_table(
        [
            "prompts",
            "decoding",
            "ms per token",
            "acceptance",
            "tokens per round",
            "cost of a round, in plain steps (cost model)",
            "speedup (median, quartiles)",
            "identical",
        ],
        lines,
    )


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    start = partial(engine, given.model, dtype=given.dtype)
    ngram_config = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    config = {"method": "ppsd", "model": given.head, "num_speculative_tokens": max(DRAFTS)}
    with (
        start() as plain,
        start(speculative_config=ngram_config) as ngram,
        start(speculative_config=config) as ppsd,
    ):
        threshold = ppsd.llm_engine.vllm_config.speculative_config.draft_threshold
        name = f"PPSD, K = {max(DRAFTS)}, threshold {threshold:.2f} (default)"
        # Row name, engine, and of PPSD drafts and threshold.
        turns: list[tuple[str, Any, tuple[int, float] | None]] = [
            (PLAIN, plain, None),
            (NGRAM, ngram, None),
            *((f"PPSD, K = {k}, all drafted", ppsd, (k, 0.0)) for k in DRAFTS),
            (name, ppsd, (max(DRAFTS), threshold)),
        ]
        tokenizer = plain.get_tokenizer()
        draft_cost, token_cost = modelled_draft_cost(ppsd), measured_token_cost(plain)
        runs: dict[tuple[str, str], list[Timed]] = {}
        with progress("prompts") as bar:
            for prompt in bar.track(first_of_each(given.prompts, given.limit) * given.repeats):
                tokens = chat_tokens(tokenizer, prompt.text)
                for name, llm, drafting in turns:
                    settle(0.5)
                    if drafting is not None:
                        llm.collective_rpc("set_drafts", args=drafting)
                    run = generate(llm, tokens, given.tokens)
                    runs.setdefault((prompt.source, name), []).append(run)
    rows = summary(runs, draft_cost, token_cost)
    return {"rows": rows, "draft_cost": draft_cost, "token_cost": token_cost}


def modelled_draft_cost(llm: Any) -> float:
    """Return the cost model's cost of a draft of PPSD's engine, in full passes."""
    config = llm.llm_engine.vllm_config
    head = ExitHeadFolder.open(config.speculative_config.model).config
    return model_shape(config.model_config).draft_cost(head)


def measured_token_cost(plain: Any, repeats: int = 9) -> float:
    """Return what a pass over one token more costs more, in passes over one token.

    Measured on plain decoding's engine: the pass over a prompt of six tokens against
    that over a prompt of one, in turns.
    """
    seconds: dict[int, list[float]] = {1: [], 6: []}
    for _ in range(repeats):
        for length, times in seconds.items():
            times.append(generate(plain, [5] * length, 2).first_token_seconds)
    return (statistics.median(seconds[6]) / statistics.median(seconds[1]) - 1) / 5


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=8, tokens=96)
    parser.add_argument("--repeats", type=int, default=1, help="times each prompt is asked")
    parser.add_argument("--dtype", default="auto", help="of all engines")
    return parser


if __name__ == "__main__":
    main()
