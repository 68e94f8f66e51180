"""One device: engines that take turns on every prompt, and what their rounds cost.

A round is one full pass with the drafts before it. Its cost is counted in steps of
plain decoding on the same prompt, as the cost model counts it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from vllm_ppsd.bench import engines
from vllm_ppsd.bench.engines import Timed
from vllm_ppsd.bench.report import quartiles
from vllm_ppsd.config.entry import model_shape
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.costs import round_cost

PLAIN = "plain"
ALL = "all"


@dataclass(frozen=True)
class Turn:
    """A kind of decoding.

    Attributes:
        name: its row's name.
        engine: vLLM's ``LLM``.
        drafts: drafts a round at most, of PPSD's engine; None for another engine.
        threshold: PPSD's draft threshold.
        acceptance: of the synthetic drafter; None for the head's own drafts.
    """

    name: str
    engine: Any
    drafts: int | None = None
    threshold: float = 0.0
    acceptance: float | None = None

    def take(self, prompt: Sequence[int], tokens: int, seen: Seen) -> None:
        """Answer a prompt and note what was seen."""
        engines.settle(0.5)
        if self.drafts is None:
            seen.runs.append(engines.generate(self.engine, prompt, tokens))
            return
        self.engine.collective_rpc("set_drafts", args=(self.drafts, self.threshold))
        if self.acceptance is not None:
            self.engine.collective_rpc("set_synthetic_acceptance", args=(self.acceptance,))
        before = engines.draft_counts(self.engine)
        seen.runs.append(engines.generate(self.engine, prompt, tokens))
        after = engines.draft_counts(self.engine)
        seen.drafts += after[0] - before[0]
        seen.hits += after[1] - before[1]


@dataclass
class Seen:
    """The runs of one kind of decoding on one prompt set."""

    runs: list[Timed] = field(default_factory=list)
    drafts: int = 0
    hits: int = 0

    def add(self, other: Seen) -> None:
        """Take in another's runs."""
        self.runs += other.runs
        self.drafts += other.drafts
        self.hits += other.hits


def interleaved(
    prompts: Sequence[tuple[str, list[int]]], turns: Sequence[Turn], tokens: int
) -> dict[tuple[str, str], Seen]:
    """Let every kind of decoding answer each prompt in turn.

    Args:
        prompts: (prompt set, token ids).
        turns: the first is plain decoding.
        tokens: output tokens per prompt.

    Returns:
        What was seen, by prompt set and row name.
    """
    found: dict[tuple[str, str], Seen] = {}
    for source, prompt in tqdm(prompts, desc="prompts"):
        for turn in turns:
            turn.take(prompt, tokens, found.setdefault((source, turn.name), Seen()))
    return found


def summary(
    found: dict[tuple[str, str], Seen], draft_cost: float, token_cost: float
) -> list[dict[str, Any]]:
    """Return a row per prompt set and kind of decoding, and with several sets one for all.

    Args:
        found: of ``interleaved``.
        draft_cost: cost of a draft in full passes, by the cost model.
        token_cost: of ``measured_token_cost``.
    """
    rows = []
    found = found | _pooled(found)
    for (source, name), seen in found.items():
        plain = found[source, PLAIN].runs
        pairs = list(zip(plain, seen.runs, strict=True))
        ratios = [one.ms_per_token / other.ms_per_token for one, other in pairs]
        rounds = [other.ms_per_pass / one.ms_per_token for one, other in pairs]
        passes = sum(run.passes for run in seen.runs)
        drafted = seen.drafts / passes
        rows.append(
            {
                "set": source,
                "name": name,
                "median_ms": statistics.median(run.ms_per_token for run in seen.runs),
                "acceptance": seen.hits / seen.drafts if seen.drafts else None,
                "drafts_per_round": drafted,
                "tokens_per_round": sum(len(run.tokens) - 1 for run in seen.runs) / passes,
                "round": statistics.median(rounds),
                "round_expected": round_cost(drafted, draft_cost, token_cost) if drafted else None,
                "speedup": statistics.median(ratios),
                "quartiles": quartiles(ratios),
                "speedups": ratios,
                "rounds": rounds,
                "identical": sum(one.tokens == other.tokens for one, other in pairs),
                "runs": len(pairs),
            }
        )
    return rows


def _pooled(found: dict[tuple[str, str], Seen]) -> dict[tuple[str, str], Seen]:
    """Return every kind of decoding over all prompt sets, if there are several."""
    pooled: dict[tuple[str, str], Seen] = {}
    if len({source for source, _ in found}) > 1:
        for (_, name), seen in found.items():
            pooled.setdefault((ALL, name), Seen()).add(seen)
    return pooled


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of ``summary`` as a Markdown table."""
    lines = [
        "| prompts | decoding | ms per token | acceptance | tokens per round | cost of a round, "
        "in plain steps (cost model) | speedup (median, quartiles) | identical |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        first, third = row["quartiles"]
        acceptance = "" if row["acceptance"] is None else f"{row['acceptance']:.2f}"
        expected = "" if row["round_expected"] is None else f" ({row['round_expected']:.2f})"
        lines.append(
            f"| {row['set']} | {row['name']} | {row['median_ms']:.1f} | {acceptance} "
            f"| {row['tokens_per_round']:.2f} | {row['round']:.2f}{expected} "
            f"| {row['speedup']:.2f} ({first:.2f} to {third:.2f}) "
            f"| {row['identical']} of {row['runs']} |"
        )
    return "\n".join(lines)


def costs(report: dict[str, Any]) -> str:
    """Return what the cost model's figures stand on, in words."""
    return (
        f"In the cost model a draft costs {report['draft_cost']:.2f} of a plain step (from the "
        f"weights it reads) and a further token in a pass {report['token_cost']:.3f} (measured "
        "on plain decoding's engine)."
    )


def modelled_draft_cost(engine: Any) -> float:
    """Return the cost model's cost of a draft of PPSD's engine, in full passes."""
    config = engine.llm_engine.vllm_config
    head = ExitHeadFolder.open(config.speculative_config.model).config
    return model_shape(config.model_config).draft_cost(head)


def measured_token_cost(plain: Any, repeats: int = 9) -> float:
    """Return what a pass over one token more costs more, in passes over one token.

    Measured on plain decoding's engine: the pass over a prompt of six tokens against
    that over a prompt of one, in turns.
    """
    lengths = (1, 6)
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(repeats):
        for length in lengths:
            run = engines.generate(plain, [5] * length, 2)
            seconds[length].append(run.first_token_seconds)
    one, six = (statistics.median(seconds[length]) for length in lengths)
    return (six / one - 1) / (lengths[1] - lengths[0])
