"""The best plan of every kind."""

from __future__ import annotations

import math

import pytest
from protocol.test_burst_value import HIGH, LOW, MID, times

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes
from vllm_ppsd.protocol.plan_search import (
    GRAIN,
    PlanSearch,
    equal,
    rounded_rates,
    rounded_times,
)

DEPTH = 12


def best(parts: StageTimes, rates: Rates = MID, requests: int = 1, steps: int = 8) -> BurstPlan:
    search = PlanSearch(steps, 0 if len(parts.stages) == 1 else DEPTH)
    return next(iter(search.ranked(parts, rates, requests).values()))


def fixed(parts: StageTimes, steps: tuple[int, ...], lengths: tuple[int, ...]) -> list[BurstPlan]:
    plans = [PLAIN, *(BurstPlan(k, 1, 0) for k in range(1, 8))]
    stages = len(parts.stages)
    if stages > 1:
        loop = sum(parts.stages) + stages * parts.hop
        full = min(DEPTH, math.ceil(loop / (1 + parts.first_step)))
        depths = {1, stages - 1, stages, full}
        plans += [BurstPlan(k, n, d) for k in steps for n in lengths for d in sorted(depths)]
    return plans


GRID = [
    (stages, step, hop, row, rates)
    for stages in (1, 2, 3, 4, 8)
    for step, row in ((0.02, 0.0), (0.1, 0.05), (0.25, 0.3))
    for hop in (0, 1, 10)
    for rates in (LOW, MID, HIGH)
]


@pytest.mark.parametrize(
    ("stages", "requests"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (2, 2), (4, 8), (2, 32)]
)
def test_single_steps_lead_to_the_best_plan(stages: int, requests: int):
    for count, step, hop, row, rates in GRID:
        if count != stages:
            continue
        parts = times(stages, step, hop if stages > 1 else 0, row)
        most = max(
            tokens_per_second(plan, parts, rates, requests)
            for plan in fixed(parts, (0, 1, 3, 6), (1, 2, 4))
        )
        made = tokens_per_second(best(parts, rates, requests), parts, rates, requests)
        assert made >= 0.97 * most, (step, hop, row, rates)


def test_every_kind_is_ranked_best_first():
    parts = times(4, 0.1, 0.5, 0.05)
    search = PlanSearch(8, DEPTH)
    ranked = search.ranked(parts, MID, 1)
    assert set(ranked) == {"plain", "draft, then verify", "one token a lane", "bursts"}
    values = [search.value(plan, parts, MID, 1) for plan in ranked.values()]
    assert values == sorted(values, reverse=True)
    assert ranked["plain"] == PLAIN
    assert ranked["draft, then verify"].depth == 0
    chain = ranked["one token a lane"]
    assert (chain.reentry, chain.following) == (0, 1)
    assert chain.depth >= 3


def test_on_one_device_no_lane_follows():
    assert set(PlanSearch(8, 0).ranked(times(1, 0.05, 0, 0.05), MID, 1)) == {
        "plain",
        "draft, then verify",
    }


def test_a_head_of_one_step_only_chains():
    assert set(PlanSearch(1, DEPTH).ranked(times(4, 0.1, 0, 0.05), MID, 1)) == {
        "plain",
        "one token a lane",
        "bursts",
    }
    chain = best(times(4, 0.1, 0, 0.05), steps=1)
    assert (chain.reentry, chain.following) == (0, 1)
    assert list(PlanSearch(1, 0).ranked(times(1, 0.1, 0, 0.05), MID, 1)) == ["plain"]


def test_no_lane_is_longer_than_the_head_has_steps():
    for steps in (2, 3, 4):
        plan = best(times(2, 0.01, 0, 0.0), HIGH, steps=steps)
        assert plan.reentry < steps
        assert plan.following <= steps


def test_of_equal_plans_for_several_requests_the_one_of_least_depth_is_taken():
    assert equal(1) == 1
    parts = times(2, 0.1, 0, 0.05)
    search = PlanSearch(8, DEPTH)
    several = search.ranked(parts, MID, 4)["bursts"]
    values = {
        depth: max(
            search.value(BurstPlan(k, n, depth), parts, MID, 4)
            for k in range(8)
            for n in range(1, 9)
        )
        for depth in (1, 2)
    }
    assert several.depth == min(
        d for d, v in values.items() if v >= equal(4) * max(values.values())
    )


def test_inputs_that_hardly_differ_are_taken_as_equal():
    parts = times(2, 0.104, 0.3, 0.05)
    near = times(2, 0.104 * (1 + GRAIN / 10), 0.3, 0.05)
    assert rounded_times(parts)[0] == rounded_times(near)[0]
    twice = StageTimes((2.0, 2.0), 0.2, 0.2, 0.05, 0.6)
    half = StageTimes((1.0, 1.0), 0.1, 0.1, 0.05, 0.3)
    assert rounded_times(twice)[0] == rounded_times(half)[0]
    assert rounded_times(twice)[1] == 2 * rounded_times(half)[1]
    assert rounded_rates(Rates((0.701,) * 8, 0.5)) == rounded_rates(Rates((0.699,) * 8, 0.5))
