"""From runs to a table's rows."""

from __future__ import annotations

import pytest

from benchmarks.single import PLAIN, render, summary
from vllm_ppsd.tools.engines import Timed


def run(seconds: float, passes: int, drafts: int = 0, hits: int = 0) -> Timed:
    return Timed([1], list(range(9)), seconds, passes, 0.1, drafts, hits)


def test_a_rounds_cost_is_counted_in_plain_steps():
    runs = {
        ("maths", PLAIN): [run(0.8, 8), run(1.6, 8)],
        ("maths", "PPSD"): [run(0.6, 4, 4, 3), run(1.2, 4, 4, 3)],
    }
    plain, ppsd = summary(runs, draft_cost=0.3, token_cost=0.1)
    assert (plain["round"], plain["round_expected"], plain["speedup"]) == (1, None, 1)
    # 150 ms a round where a plain step takes 100 ms; one draft a round.
    assert ppsd["round"] == pytest.approx(1.5)
    assert ppsd["round_expected"] == pytest.approx(1.4)
    assert ppsd["tokens_per_round"] == 2
    assert ppsd["acceptance"] == 0.75
    assert ppsd["speedup"] == pytest.approx(8 / 6)
    assert "| 0.75 | 2.00 | 1.50 (1.40) | 1.33 (1.33 to 1.33) | 2 of 2 |" in render([ppsd])


def test_several_prompt_sets_are_pooled():
    runs = {
        ("maths", PLAIN): [run(0.8, 8)] * 2,
        ("maths", "PPSD"): [run(0.4, 4, 2, 2)] * 2,
        ("code", PLAIN): [run(0.8, 8)] * 2,
        ("code", "PPSD"): [run(0.8, 8, 2, 0)] * 2,
    }
    rows = {(row["set"], row["name"]): row for row in summary(runs, 0.3, 0.1)}
    assert len(rows) == 6
    pooled = rows["all", "PPSD"]
    assert (pooled["acceptance"], pooled["runs"], pooled["speedups"]) == (0.5, 4, [2, 2, 1, 1])
