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

    def choose(self, request_ids, times):
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


@pytest.mark.parametrize(
    ("lane", "accepted", "compared", "steps", "reentry"),
    [
        (Lane("a", 0, 5), 1, 1, [1], False),
        (Lane("a", 0, 5, 4, 3, 4), 2, 3, [2, 3, 4], True),
        (Lane("a", 0, 5, 4, 3, 4), 4, 4, [2, 3, 4, 1], True),
        (Lane("a", 1, 5, 3, 3, 3, behind=0), 1, 2, [2, 3], False),
        (Lane("a", 1, 5, 3, 3, 3, behind=0), 3, 3, [2, 3, 1], False),
    ],
)
def test_verdicts_are_learned_by_step(
    monkeypatch: pytest.MonkeyPatch,
    lane: Lane,
    accepted: int,
    compared: int,
    steps: list[int],
    reentry: bool,
):
    load = planned(a=CHAIN)
    learned = []
    monkeypatch.setattr(
        load._policy.acceptance, "judged", lambda *arguments: learned.append(arguments)
    )
    load.judged(lane, Outcome("a", (7,) * (accepted + 1), compared, accepted))
    assert learned == [("a", steps, accepted, reentry)]


def test_a_fixed_plan_is_every_requests():
    load = PlannedLoad(2, 3, FixedPlan(VERIFIED), PartCosts([1.0, 1.0], 0.1))
    load.choose(["a", "b", "c"])
    admitted = load.admit(decoding(load, a=0, b=0, c=0))
    assert len(admitted.entering) == 2
    assert admitted.drafting == {"a", "b", "c"}
    load.judged(Lane("a", 0, 5, 4, 3, 4), Outcome("a", (7,), 1, 0))
    load.forget("a")
    assert load.news(0.0) is None
