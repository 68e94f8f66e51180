"""From runs to a table's rows."""

from __future__ import annotations

import pytest
from vllm_ppsd.bench.engines import Timed

from benchmarks.rounds import PLAIN, Seen, render, summary


def run(seconds: float, passes: int, tokens: int = 9) -> Timed:
    return Timed([1], list(range(tokens)), seconds, passes, 0.1)


def test_a_rounds_cost_is_counted_in_plain_steps():
    found = {
        ("maths", PLAIN): Seen([run(0.8, 8), run(1.6, 8)]),
        ("maths", "PPSD"): Seen([run(0.6, 4), run(1.2, 4)], drafts=8, hits=6),
    }
    plain, ppsd = summary(found, draft_cost=0.3, token_cost=0.1)
    assert (plain["round"], plain["round_expected"], plain["speedup"]) == (1, None, 1)
    # 150 ms a round where a plain step takes 100 ms; one draft a round.
    assert ppsd["round"] == pytest.approx(1.5)
    assert ppsd["round_expected"] == pytest.approx(1.4)
    assert ppsd["tokens_per_round"] == 2
    assert ppsd["acceptance"] == 0.75
    assert ppsd["speedup"] == pytest.approx(8 / 6)
    assert "| 0.75 | 2.00 | 1.50 (1.40) | 1.33 (1.33 to 1.33) | 2 of 2 |" in render([ppsd])


def test_several_prompt_sets_are_pooled():
    found = {
        ("maths", PLAIN): Seen([run(0.8, 8)] * 2),
        ("maths", "PPSD"): Seen([run(0.4, 4)] * 2, drafts=4, hits=4),
        ("code", PLAIN): Seen([run(0.8, 8)] * 2),
        ("code", "PPSD"): Seen([run(0.8, 8)] * 2, drafts=4, hits=0),
    }
    rows = {(row["set"], row["name"]): row for row in summary(found, 0.3, 0.1)}
    assert len(rows) == 6
    pooled = rows["all", "PPSD"]
    assert (pooled["acceptance"], pooled["runs"], pooled["speedups"]) == (0.5, 4, [2, 2, 1, 1])
