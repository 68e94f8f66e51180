"""Which requests enter a tick: sure work, drafts, and how many of them."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol.costs import PRIOR_LANE, TickCosts
from vllm_ppsd.protocol.load import Decoding, FixedDepth, LoadPolicy


def costs(lane: float) -> TickCosts:
    """Of a device on which a further lane costs ``lane`` ticks of one lane."""
    learned = TickCosts()
    for _ in range(40):
        for lanes in (1, 2, 4, 8, 16):
            learned.observe(lanes, 0.02 * (1 + lane * (lanes - 1)))
    return learned


def policy(lane: float, stages: int = 2) -> LoadPolicy:
    return LoadPolicy(stages, stages - 1, costs(lane))


def waiting(count: int, unverified: int = 0) -> list[Decoding]:
    return [Decoding(f"r{i}", unverified) for i in range(count)]


@pytest.mark.parametrize("lane", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("stages", [2, 4])
def test_a_request_alone_always_drafts(lane: float, stages: int):
    chosen = policy(lane, stages)
    for unverified in range(stages + 1):
        assert chosen.admit(waiting(1, unverified)).entering == {"r0"}
    assert chosen.admit(waiting(1, stages + 1)).entering == set()


def test_a_request_alone_drafts_on_after_nothing_but_misses():
    chosen = policy(0.05)
    for _ in range(1000):
        assert chosen.admit(waiting(1, 1)).entering == {"r0"}
        chosen.acceptance.judged("r0", hit=False)
    chosen.acceptance.forget("r0")
    chosen.admit([])
    assert chosen.admit([Decoding("r1", 1)]).entering == {"r1"}


def test_a_low_acceptance_rate_is_tried_anew():
    chosen = policy(0.05)
    for _ in range(200):
        for i in range(4):
            chosen.acceptance.judged(f"r{i}", hit=False)
    chosen.admit(waiting(4))
    assert chosen.drafting == 0
    ticks = 0
    while not chosen.drafting:
        chosen.admit(waiting(4))
        ticks += 1
        assert ticks < 5000


def test_where_lanes_are_free_everyone_drafts():
    chosen = policy(0.0)
    assert len(chosen.admit(waiting(32, 1)).entering) == 32


def test_where_every_lane_costs_a_tick_sure_work_goes_first():
    chosen = policy(1.0)
    # Two stages, eight requests: four a tick, and none on a draft.
    assert chosen.admit(waiting(8)).entering == {"r0", "r1", "r2", "r3"}
    assert chosen.admit(waiting(8, 1)).entering == set()


def test_more_requests_draft_less():
    shares = []
    for count in (1, 4, 16, 64, 256):
        chosen = policy(0.05)
        chosen.admit(waiting(count))
        shares.append(chosen.drafting / count)
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1, 0)


def test_beside_a_prompt_all_that_is_ready_goes_along():
    chosen = policy(1.0)
    assert len(chosen.admit(waiting(8), prompts=True).entering) == 8


def test_several_requests_wait_for_a_stage_to_be_free():
    chosen = policy(1.0)
    assert not chosen.full(requests=8, in_flight=1)
    assert chosen.full(requests=8, in_flight=2)
    assert not chosen.full(requests=1, in_flight=2)


def test_among_several_requests_a_small_promise_is_not_enough():
    # All four drafting: 3.1 tokens in 1.9 ticks of one lane, against 2 in 1.3.
    chosen = policy(0.3)
    assert chosen.admit(waiting(4)).drafting == set()


def test_the_best_acceptance_rates_draft():
    chosen = policy(0.05)
    for _ in range(100):
        for i in range(4):
            chosen.acceptance.judged(f"r{i}", hit=i in (1, 2))
    assert chosen.acceptance.rate("r2") > 0.9 > 0.1 > chosen.acceptance.rate("r0")
    admitted = chosen.admit(waiting(4, 1))
    assert chosen.drafting == 2
    assert (admitted.entering, admitted.drafting) == ({"r1", "r2"}, {"r1", "r2"})


def test_a_request_that_may_not_draft_never_does():
    chosen = policy(0.0)
    admitted = chosen.admit([Decoding("a", 1, may_draft=False), Decoding("b", 1)])
    assert (admitted.entering, admitted.drafting) == ({"b"}, {"b"})


@pytest.mark.parametrize("chosen", [policy(0.0), FixedDepth(1)])
def test_nothing_is_sent_on_behind_a_lane_without_a_draft(chosen: LoadPolicy | FixedDepth):
    quiet, over = Decoding("a", 1, drafted=False), Decoding("b", 0, drafted=False)
    admitted = chosen.admit([quiet, over])
    assert (admitted.entering, admitted.drafting) == ({"b"}, {"a", "b"})


def test_without_drafts_sure_work_is_dealt_over_the_ticks():
    chosen = LoadPolicy(2, 0, costs(0.02))
    requests = waiting(5)
    first = chosen.admit(requests).entering
    rest = [Decoding(r.request_id, int(r.request_id in first)) for r in requests]
    second = chosen.admit(rest).entering
    assert (len(first), len(second)) == (3, 2)
    assert not first & second


def test_a_request_that_left_is_forgotten():
    chosen = policy(0.0)
    for _ in range(100):
        chosen.acceptance.judged("a", hit=False)
    chosen.acceptance.forget("a")
    chosen.acceptance.judged("b", hit=True)
    assert chosen.acceptance.rate("a") == chosen.acceptance.rate("c")


def test_costs_are_learned_from_ticks():
    learned = costs(0.25)
    assert learned.seconds(1) == pytest.approx(0.02, rel=0.05)
    assert learned.seconds(9) == pytest.approx(0.06, rel=0.05)
    learned.observe(1, 5.0)
    assert learned.seconds(1) == pytest.approx(0.02, rel=0.05)


def test_as_long_as_all_ticks_are_alike_the_prior_decides_the_slope():
    learned = TickCosts()
    for _ in range(50):
        learned.observe(1, 0.02)
    assert learned.seconds(1) == pytest.approx(0.02)
    assert learned.seconds(11) == pytest.approx(0.02 * (1 + 10 * PRIOR_LANE))


def test_costs_follow_a_device_that_slows_down():
    learned = costs(0.0)
    for _ in range(600):
        learned.observe(1, 0.04)
        learned.observe(4, 0.04)
    assert learned.seconds(2) == pytest.approx(0.04, rel=0.1)
