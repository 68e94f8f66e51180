"""Who enters a tick where each request has a plan, and what verdicts teach."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol import (
    PLAIN,
    BurstPlan,
    BurstPolicy,
    Decoding,
    FixedPlan,
    Lane,
    Outcome,
    PartCosts,
    PlannedLoad,
)

CHAIN, VERIFIED = BurstPlan(0, 1, 3), BurstPlan(4, 1, 0)


class Fixed(BurstPolicy):
    """Gives out the plans it is told."""

    def __init__(self, **plans: BurstPlan) -> None:
        super().__init__(8, 3)
        self._told = plans

    def choose(self, request_ids, times, waits=False):
        return {request_id: self._told[request_id] for request_id in request_ids}


def planned(stages: int = 2, **plans: BurstPlan) -> PlannedLoad:
    load = PlannedLoad(stages, 3, Fixed(**plans), PartCosts([1.0] * stages, 0.1))
    load.choose(list(plans))
    return load


def decoding(load: PlannedLoad, **unverified: int) -> list[Decoding]:
    return [
        Decoding(name, ticks, depth=load.plan(name).depth) for name, ticks in unverified.items()
    ]


def test_lanes_follow_as_far_as_the_plan_says():
    load = planned(a=BurstPlan(0, 2, 1), b=CHAIN)
    for unverified, entering in ((0, {"a", "b"}), (1, {"a", "b"}), (2, {"b"}), (4, set())):
        admitted = load.admit(decoding(load, a=unverified, b=unverified))
        assert admitted.entering == entering
        assert admitted.drafting == {"a", "b"}


def test_requests_that_enter_as_roots_are_dealt_over_the_ticks():
    plans = {name: VERIFIED if name < "c" else PLAIN for name in "abcde"}
    load = planned(2, **plans)
    requests = decoding(load, **dict.fromkeys("abcde", 0))
    admitted = load.admit(requests)
    assert len(admitted.entering) == 3
    assert admitted.drafting == {"a", "b"}
    assert load.admit(requests, prompts=True).entering == set("abcde")
    assert load.admit(decoding(load, a=1, b=0)).entering == {"b"}


def test_the_stages_are_full_when_no_plan_lets_more_follow():
    load = planned(2, a=CHAIN, b=PLAIN)
    assert not load.full(2, 3)
    assert load.full(2, 4)
    assert not load.full(1, 9)
    load.choose(["b"])
    assert load.full(2, 2)


def test_a_request_that_begins_gets_a_plan_beside_the_others():
    load = planned(a=CHAIN, b=VERIFIED)
    load.choose(["a"])
    assert load.plan("b") == CHAIN
    load.choose(["a", "b"])
    assert load.plan("b") == VERIFIED
    assert load.plan("a") == CHAIN
    load.forget("a")
    load.choose([])


ROOT = Lane("a", 0, 5)
BURST = Lane("a", 0, 5, 4, 3, 4)
FOLLOWER = Lane("a", 1, 5, 3, 3, 3, behind=0)


@pytest.mark.parametrize(
    ("lane", "right", "redrafted", "goes_on", "steps", "accepted", "again"),
    [
        (ROOT, 0, 0, True, [1], 1, ([], [])),
        (ROOT, 0, 0, False, [1], 0, ([], [])),
        (BURST, 2, None, False, [2, 3, 4], 2, None),
        (BURST, 3, None, False, [2, 3, 4], 3, None),
        (BURST, 3, 3, True, [2, 3, 4, 1], 4, ([True] * 3, [])),
        (BURST, 3, 1, False, [2, 3, 4], 3, ([True, False], [])),
        (BURST, 2, 2, True, [2, 3, 4], 2, ([True] * 2, [True])),
        (BURST, 2, 2, False, [2, 3, 4], 2, ([True] * 2, [False])),
        (BURST, 2, 3, False, [2, 3, 4], 2, ([True] * 2, [False])),
        (FOLLOWER, 0, 0, True, [2], 0, ([], [True])),
        (FOLLOWER, 1, 0, False, [2, 3], 1, ([False], [False])),
    ],
)
def test_verdicts_are_learned_by_step(
    monkeypatch: pytest.MonkeyPatch, lane, right, redrafted, goes_on, steps, accepted, again
):
    load = planned(a=CHAIN)
    learned, learned_again = [], []
    book = load._policy.acceptance
    monkeypatch.setattr(book, "judged", lambda *arguments: learned.append(arguments))
    monkeypatch.setattr(book, "drafted_again", lambda *arguments: learned_again.append(arguments))
    complete = right == lane.samples - 1
    compared = right + (redrafted is not None if complete else 1)
    continues = 0 if goes_on else None
    outcome = Outcome("a", (7,) * (right + 1), compared, right + goes_on, continues, 0, redrafted)
    load.judged(lane, outcome)
    assert learned == [("a", steps, accepted, lane is BURST)]
    assert learned_again == ([] if again is None else [again])


def test_a_fixed_plan_is_every_requests():
    load = PlannedLoad(2, 3, FixedPlan(VERIFIED), PartCosts([1.0, 1.0], 0.1))
    load.choose(["a", "b", "c"])
    admitted = load.admit(decoding(load, a=0, b=0, c=0))
    assert len(admitted.entering) == 2
    assert admitted.drafting == {"a", "b", "c"}
    load.judged(Lane("a", 0, 5, 4, 3, 4), Outcome("a", (7,), 1, 0))
    load.forget("a")
    assert load.news(0.0) is None
