"""What plans are expected to yield, beside what they yield in the simulator."""

from __future__ import annotations

import pytest
from support.simulator.bursts import BurstSimulation

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes

LOW = Rates((0.5, *(0.4,) * 7), 0.42)
MID = Rates()
HIGH = Rates((0.93, *(0.9,) * 7), 0.9)


def times(stages: int, step: float, hop: float, row: float) -> StageTimes:
    return StageTimes((1.0,) * stages, step, step, row, hop)


def simulated(plan: BurstPlan, parts: StageTimes, rates: Rates, requests: int, tokens: int):
    return BurstSimulation(parts, [(plan, rates)] * requests, seed=1).run(tokens)


@pytest.mark.parametrize(
    ("parts", "rates", "plan"),
    [
        (times(1, 0.1, 0, 0.1), MID, BurstPlan(4, 1, 0)),
        (times(2, 0.04, 0, 0.03), MID, BurstPlan(5, 1, 0)),
        (times(2, 0.1, 0, 0.0), LOW, BurstPlan(0, 1, 1)),
        (times(2, 0.1, 3, 0.05), MID, BurstPlan(2, 3, 8)),
        (times(2, 0.25, 0.5, 0.3), LOW, BurstPlan(1, 2, 2)),
        (times(4, 0.02, 1, 0.05), MID, BurstPlan(1, 2, 1)),
        (times(4, 0.25, 0, 0.3), MID, BurstPlan(5, 1, 3)),
        (times(8, 0.1, 1, 0.05), LOW, BurstPlan(3, 2, 7)),
        (StageTimes((1.0, 1.6, 0.4), 0.2, 0.1, 0.1, 0.5), MID, BurstPlan(2, 2, 3)),
    ],
)
def test_one_request_yields_what_is_expected(parts: StageTimes, rates: Rates, plan: BurstPlan):
    expected = tokens_per_second(plan, parts, rates)
    assert simulated(plan, parts, rates, 1, 12_000) == pytest.approx(expected, rel=0.025)


def test_stages_that_slow_each_other_down_make_waiting_for_the_verdict_worth_more():
    alone, beside = times(2, 0.1, 0, 0.05), StageTimes((1.0, 1.0), 0.1, 0.1, 0.05, 0.0, 1.25)
    slowed = StageTimes((1.25, 1.25), 0.1, 0.1, 0.05)
    waits, follows = BurstPlan(4, 1, 0), BurstPlan(2, 2, 1)
    assert tokens_per_second(waits, beside, MID) == tokens_per_second(waits, alone, MID)
    assert tokens_per_second(follows, beside, MID) == tokens_per_second(follows, slowed, MID)
    assert tokens_per_second(waits, beside, MID, 4) == tokens_per_second(waits, slowed, MID, 4)


@pytest.mark.parametrize(
    ("parts", "plan", "requests", "within"),
    [
        (times(2, 0.1, 0, 0.05), PLAIN, 5, 0.02),
        (times(3, 0.1, 1, 0.05), BurstPlan(4, 1, 0), 8, 0.03),
        (times(2, 0.1, 0, 0.05), BurstPlan(0, 1, 1), 4, 0.05),
        (times(4, 0.02, 1, 0.05), BurstPlan(2, 2, 5), 3, 0.06),
        (times(2, 0.25, 3, 0.0), BurstPlan(1, 2, 5), 8, 0.1),
    ],
)
def test_several_requests_yield_about_what_is_expected(
    parts: StageTimes, plan: BurstPlan, requests: int, within: float
):
    expected = tokens_per_second(plan, parts, MID, requests)
    assert simulated(plan, parts, MID, requests, 12_000) == pytest.approx(expected, rel=within)


@pytest.mark.parametrize(
    ("stages", "step", "hop", "speedup"),
    [
        (2, 0.04, 0, 1.6),
        (2, 0.10, 0.5, 1.9),
        (4, 0.04, 0, 2.3),
        (4, 0.10, 0.5, 2.6),
        (8, 0.04, 0, 3.0),
        (8, 0.10, 0.5, 3.4),
    ],
)
def test_a_chain_of_one_token_lanes(stages: int, step: float, hop: float, speedup: float):
    parts = times(stages, step, hop, 0.03)
    depth = round(stages * (1 + hop))
    chain = tokens_per_second(BurstPlan(0, 1, depth), parts, MID)
    assert chain / tokens_per_second(PLAIN, parts, MID) == pytest.approx(speedup, abs=0.07)


def test_where_no_draft_is_right_a_burst_is_worth_nothing():
    parts, never = times(2, 0.1, 0, 0.1), Rates((0.0,) * 8, 0.0)
    plain = tokens_per_second(PLAIN, parts, never)
    assert plain == pytest.approx(0.5)
    assert tokens_per_second(BurstPlan(3, 1, 0), parts, never) < plain


def test_more_acceptance_never_yields_less():
    for plan in (BurstPlan(0, 1, 3), BurstPlan(3, 2, 3), BurstPlan(5, 1, 0)):
        values = [
            tokens_per_second(plan, times(4, 0.1, 0.5, 0.05), Rates((a,) * 8, a))
            for a in (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
        ]
        assert values == sorted(values)
