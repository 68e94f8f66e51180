"""The protocol's rules one by one."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol import (
    DraftBook,
    Flight,
    Lane,
    MissingDraftError,
    RetirementBook,
    StaleBook,
    TickGate,
    Verdict,
    flush,
    may_enter,
    steps_in_flight,
)


def test_flush_rewinds_to_the_retired_position():
    after = flush(Flight(computed=12, unverified=2, in_flight=2))
    assert after == Flight(computed=10, unverified=0, in_flight=2, stale=2)


def test_a_flight_cannot_be_inconsistent():
    with pytest.raises(ValueError, match="unverified"):
        Flight(computed=1, unverified=2, in_flight=2)
    with pytest.raises(ValueError, match="stale"):
        Flight(computed=1, unverified=0, in_flight=1, stale=2)


def test_depth_0_is_plain_decoding():
    assert may_enter(0, 0, alone=True)
    assert not may_enter(1, 0, alone=True)
    assert steps_in_flight(0) == 1


@pytest.mark.parametrize("depth", range(1, 9))
def test_one_tick_is_sent_ahead_of_what_may_be_unverified(depth: int):
    assert may_enter(depth + 1, depth, alone=True)
    assert not may_enter(depth + 2, depth, alone=True)
    assert may_enter(depth, depth, alone=False)
    assert not may_enter(depth + 1, depth, alone=False)
    assert steps_in_flight(depth) == depth + 2


def test_a_drafted_lane_counts_only_behind_a_hit_at_its_position():
    book = RetirementBook()
    first = Lane("a", 0, 4, drafted=False)
    assert book.counts(first)
    assert book.retire(first, token=7, draft=7)
    assert book.counts(Lane("a", 4, 1, drafted=True))
    assert not book.counts(Lane("a", 5, 1, drafted=True))
    assert not book.counts(Lane("b", 4, 1, drafted=True))
    assert not book.retire(Lane("a", 4, 1, drafted=True), token=8, draft=9)
    assert not book.counts(Lane("a", 5, 1, drafted=True))
    assert book.counts(Lane("a", 5, 1, drafted=False))


def test_stage_0_embeds_its_draft_until_it_hears_of_a_miss():
    book = DraftBook()
    prompt = Lane("a", 0, 3, drafted=False)
    assert book.enter(prompt) is None
    book.propose("a", 3, 17)
    lane = Lane("a", 3, 1, drafted=True)
    assert book.enter(lane) == 17
    book.judge(prompt, Verdict.HIT)
    assert not book.is_stale(lane)
    book.judge(prompt, Verdict.MISS)
    assert book.is_stale(lane)
    book.enter(Lane("a", 4, 1, drafted=True))  # stale: needs no draft
    assert book.enter(Lane("a", 3, 1, drafted=False)) is None
    assert not book.is_stale(lane)


def test_a_verdict_that_comes_after_the_true_token_is_no_news():
    book = DraftBook()
    prompt = Lane("a", 0, 3, drafted=False)
    book.enter(prompt)
    book.enter(Lane("a", 3, 1, drafted=False))
    book.judge(prompt, Verdict.MISS)
    assert not book.is_stale(Lane("a", 4, 1, drafted=True))


def test_a_missing_draft_is_an_error():
    book = DraftBook()
    with pytest.raises(MissingDraftError, match="position 3"):
        book.enter(Lane("a", 3, 1, drafted=True))
    book.propose("a", 4, 1)
    with pytest.raises(MissingDraftError, match="position 3"):
        book.enter(Lane("a", 3, 1, drafted=True))


def test_a_verdict_on_a_request_that_left_is_ignored():
    book = DraftBook()
    lane = Lane("a", 0, 3, drafted=False)
    book.enter(lane)
    book.forget("a")
    book.judge(lane, Verdict.MISS)
    assert not book.is_stale(Lane("a", 3, 1, drafted=True))


def test_the_gate_holds_a_draft_until_the_tick_depth_before_is_judged():
    gate = TickGate(1, StaleBook())
    first, second, third = (Lane("a", p, 1, drafted=p > 0) for p in range(3))
    assert gate.due([first]) == 0
    assert gate.start([first])
    assert gate.due([second]) == 0
    assert gate.start([second])
    assert gate.due([third]) == 1
    gate.judge([Verdict.HIT])
    assert gate.due([third]) == 0


def test_after_a_miss_nothing_is_waited_for():
    book = StaleBook()
    gate = TickGate(1, book)
    known, second, third = (Lane("a", p, 1, drafted=p > 0) for p in range(3))
    for lane in (known, second):
        book.arrive(lane)
        assert gate.start([lane])
    gate.judge([Verdict.MISS])
    assert gate.due([third]) == 0
    assert not gate.start([third])
    again, behind = Lane("a", 1, 1, drafted=False), Lane("a", 2, 1, drafted=True)
    book.arrive(again)
    assert gate.due([again]) == 0
    assert gate.start([again])
    # Two ticks of stale lanes are still unjudged.
    assert gate.due([behind]) == 0
    assert gate.start([behind])
    assert gate.unjudged == 4
    for _ in range(2):
        gate.judge([Verdict.NONE])
    assert gate.due([Lane("a", 3, 1, drafted=True)]) == 1


def test_a_tick_is_run_for_one_lane_that_counts():
    book = StaleBook()
    gate = TickGate(1, book)
    for name in ("a", "b"):
        book.arrive(Lane(name, 0, 1, drafted=False))
    gate.start([Lane("a", 0, 1, drafted=False), Lane("b", 0, 1, drafted=False)])
    gate.judge([Verdict.MISS, Verdict.HIT])
    assert gate.start([Lane("a", 1, 1, drafted=True), Lane("b", 1, 1, drafted=True)])
    assert not gate.start([Lane("a", 2, 1, drafted=True)])
