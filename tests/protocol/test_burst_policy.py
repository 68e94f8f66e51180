"""Which plans the policy chooses, and that no fixed one does better in the simulator."""

from __future__ import annotations

import pytest
from protocol.test_burst_value import HIGH, LOW, MID, simulated, times
from protocol.test_plan_search import DEPTH, fixed

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.burst_policy import (
    BETTER,
    LOG_EVERY,
    LOOKS_APART,
    PATIENCE,
    BurstPolicy,
)
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes


def policy(rates: Rates = MID, depth: int = DEPTH, margin: float = 1.0) -> BurstPolicy:
    made = BurstPolicy(8, depth, margin)
    made.acceptance.overall = rates
    return made


def chosen(parts: StageTimes, rates: Rates = MID, requests: int = 1) -> BurstPlan:
    names = [f"r{i}" for i in range(requests)]
    return policy(rates, 0 if len(parts.stages) == 1 else DEPTH).choose(names, parts)["r0"]


@pytest.mark.parametrize(
    ("stages", "step", "hop", "row", "rates", "requests"),
    [
        (1, 0.05, 0, 0.05, MID, 1),
        (1, 0.05, 0, 0.3, MID, 4),
        (2, 0.02, 0, 0.0, MID, 1),
        (2, 0.25, 0, 0.05, LOW, 1),
        (2, 0.1, 3, 0.05, MID, 1),
        (2, 0.1, 0, 0.05, MID, 3),
        (2, 0.1, 0, 0.3, LOW, 8),
        (3, 0.1, 1, 0.05, HIGH, 1),
        (4, 0.1, 0, 0.05, MID, 1),
        (4, 0.02, 1, 0.3, LOW, 2),
        (8, 0.1, 0, 0.05, MID, 1),
    ],
)
def test_no_fixed_plan_beats_the_choice_by_more_than_three_percent(
    stages: int, step: float, hop: float, row: float, rates: Rates, requests: int
):
    parts = times(stages, step, hop, row)
    plan = chosen(parts, rates, requests)
    # A short run of every fixed plan, and a long one of those that did best.
    plans = fixed(parts, (0, 1, 3, 5), (1, 2, 4))
    short = sorted(plans, key=lambda other: -simulated(other, parts, rates, requests, 300))
    best = max(simulated(other, parts, rates, requests, 6000) for other in short[:4])
    assert simulated(plan, parts, rates, requests, 6000) >= 0.97 * best


def test_two_stages_want_long_bursts_and_many_stages_many_lanes():
    two, eight = chosen(times(2, 0.04, 0, 0.03)), chosen(times(8, 0.1, 0.5, 0.03))
    assert two.reentry >= 4 > eight.reentry
    assert two.depth <= 2
    assert eight.depth >= 7


def test_where_drafts_are_never_mended_many_stages_want_short_lanes():
    parts, unmended = times(8, 0.1, 0.5, 0.03), Rates(kept=0.98, mended=0.02)
    assert chosen(parts, unmended).following <= 2 < chosen(parts).following


def test_a_head_that_takes_long_or_is_often_wrong_makes_short_bursts():
    cheap, dear = chosen(times(1, 0.02, 0, 0.03)), chosen(times(1, 0.3, 0, 0.03))
    assert cheap.reentry > dear.reentry
    assert chosen(times(1, 0.02, 0, 0.03), LOW).reentry < cheap.reentry


def test_with_many_requests_bursts_go_first_and_then_drafting():
    parts = times(2, 0.1, 0, 0.1)
    plans = [chosen(parts, MID, requests) for requests in (1, 2, 4, 8, 16, 64, 256)]
    drafts = [plan.reentry + plan.following * plan.depth for plan in plans]
    assert drafts == sorted(drafts, reverse=True)
    assert plans[-1] == PLAIN
    assert any(0 < count <= 2 for count in drafts)


def test_on_one_device_no_lane_follows():
    assert chosen(times(1, 0.05, 0, 0.05)).depth == 0


def test_a_head_of_one_step_makes_no_bursts():
    made = BurstPolicy(1, DEPTH).choose(["r"], times(4, 0.1, 0, 0.05))["r"]
    assert (made.reentry, made.following) == (0, 1)
    assert made.depth >= 3
    assert BurstPolicy(1, 0).choose(["r"], times(1, 0.1, 0, 0.05))["r"] == PLAIN


def test_a_margin_is_asked_of_several_requests_only():
    parts = times(2, 0.1, 0, 0.05)
    choice = policy(margin=3.0)
    assert choice.choose(["a"], parts)["a"] != PLAIN
    assert choice.choose(["a", "b"], parts)["b"] == PLAIN


def test_a_plan_stays_until_another_is_clearly_better():
    choice, parts = policy(), times(4, 0.1, 0.5, 0.05)
    before = choice.choose(["r"], parts)["r"]
    changes = 0
    for look in range(200):
        rates = Rates(tuple(r + 0.012 * (-1) ** look for r in MID.steps), MID.reentry)
        choice.acceptance.overall = rates
        for _ in range(PATIENCE):
            plan = choice.choose(["r"], parts)["r"]
        changes += plan != before
        before = plan
    assert changes <= 1
    worse = Rates((0.4, *(0.25,) * 7), 0.25, 0.8, 0.2)
    choice.acceptance.overall = worse
    for _ in range(2 * PATIENCE):
        plan = choice.choose(["r"], parts)["r"]
    other = tokens_per_second(before, parts, worse)
    assert tokens_per_second(plan, parts, worse) > BETTER * other


def test_requests_have_plans_of_their_own():
    choice, parts = policy(), times(2, 0.05, 0, 0.05)
    for _ in range(100):
        choice.acceptance.judged("bad", [2], accepted=0, reentry=True)
        choice.acceptance.judged("good", [2, 3, 4], accepted=3, reentry=True)
    for _ in range(3 * LOOKS_APART):
        plans = choice.choose(["bad", "good"], parts)
    assert plans["good"].reentry > plans["bad"].reentry
    choice.forget("bad")
    assert set(choice.choose(["good"], parts)) == {"good"}


def test_plain_decoding_is_left_again():
    choice, parts = policy(LOW, 0), times(1, 0.5, 0, 0.3)
    assert choice.choose(["r"], parts)["r"] == PLAIN
    cheap = times(1, 0.1, 0, 0.05)
    for _ in range(100):
        choice.acceptance.judged("r", [2], accepted=0, reentry=True)
    asked = 0
    while choice.choose(["r"], cheap)["r"] == PLAIN:
        asked += 1
        assert asked < 5000


def test_the_choice_is_said_when_it_changes_and_not_too_often():
    choice, parts = policy(), times(2, 0.04, 0, 0.03)
    choice.choose(["r"], parts)
    words = choice.news(0.0)
    assert words is not None
    assert "tokens/s expected" in words
    assert "plain 0.5" in words
    assert choice.news(100.0) is None
    choice.choose([f"r{i}" for i in range(64)], parts)
    assert choice.news(LOG_EVERY / 2) is None
    assert choice.news(LOG_EVERY + 1) not in (None, words)


@pytest.mark.parametrize(("steps", "depth", "margin"), [(0, 1, 1.0), (9, 1, 1.0), (4, -1, 1.0)])
def test_what_no_head_or_pipeline_has_is_refused(steps: int, depth: int, margin: float):
    with pytest.raises(ValueError, match=r"steps|follow"):
        BurstPolicy(steps, depth, margin)


def test_a_margin_under_one_is_refused():
    with pytest.raises(ValueError, match="margin"):
        BurstPolicy(4, 1, 0.9)


def test_few_looks_whatever_the_number_of_requests_does(monkeypatch: pytest.MonkeyPatch):
    """A prompt beside others changes the number every tick; all of them get their turn."""
    choice, parts = policy(), times(2, 0.05, 0, 0.05)
    looked: list[str] = []
    look = choice._look
    monkeypatch.setattr(
        choice, "_look", lambda name, times: looked.append(name) or look(name, times)
    )
    names = [f"r{i}" for i in range(6)]
    for tick in range(20 * LOOKS_APART):
        choice.choose(names[: 5 + tick % 2], parts)
    assert len(looked) <= 22
    assert set(looked[2:]) == set(names)


def test_the_first_looks_follow_soon():
    """The first one knows no part's time."""
    choice, parts = policy(), times(2, 0.1, 0, 0.05)
    looks = []
    look = choice._look
    choice._look = lambda *arguments: looks.append(choice._asked) or look(*arguments)
    for _ in range(4 * PATIENCE):
        choice.choose(["r"], parts)
    assert looks == [1, 9, 25, 57, 121, 185, 249]


def test_a_look_is_put_off_to_when_stages_work_but_not_for_ever():
    choice, parts = policy(), times(2, 0.1, 0, 0.05)
    choice._patience = PATIENCE
    looks = []
    look = choice._look
    choice._look = lambda *arguments: looks.append(choice._asked) or look(*arguments)
    for _ in range(PATIENCE + 10):
        choice.choose(["r"], parts, waits=True)
    choice.choose(["r"], parts)
    assert looks == [1, PATIENCE + 11]
    for _ in range(4 * PATIENCE):
        choice.choose(["r"], parts, waits=True)
    assert looks[2:] == [3 * PATIENCE + 11, 5 * PATIENCE + 11]


def test_requests_that_draft_in_vain_stop():
    chooser, parts = policy(), times(2, 0.1, 0, 0.05)
    drafting = []
    for tick in range(4000):
        plans = chooser.choose([f"r{i}" for i in range(7 + tick % 2)], parts)
        drafts = any(plan != PLAIN for plan in plans.values())
        drafting.append(drafts)
        chooser.retired(6 if drafts else 8, now=0.05 * tick)
    assert all(drafting[:24]), "it promises more than plain decoding"
    assert sum(drafting[-1000:]) < 100
