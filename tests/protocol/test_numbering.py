"""The scheduler: levels, their shapes, and what the stages are told."""

from __future__ import annotations

import pytest
from protocol.lanes import follower, outcome

from vllm_ppsd.protocol import Lane, Outcome, Retired, Shape, Tick, TickBook


def send_root(book: TickBook, width: int, length: int = 1) -> Tick:
    lane = book.lane("a", 0, 5, known=5, samples=1)
    return book.tick([lane], shapes={"a": Shape(width, length)})


def send_level(book: TickBook, position: int, width: int, length: int = 1) -> Tick:
    return book.tick(book.level("a", position), shapes={"a": Shape(width, length)})


def test_a_lane_of_unknown_tokens_goes_on_from_the_requests_newest_tick():
    book = TickBook()
    book.tick([book.lane("a", 0, 5, known=5, samples=1)])
    book.tick([book.lane("b", 0, 5, known=5, samples=1)])
    assert book.lane("a", 5, 1, known=0, samples=1) == Lane("a", 2, 5, 1, 1, 1, behind=0)
    with pytest.raises(KeyError):
        book.lane("c", 5, 1, known=0, samples=1)
    book.tick([book.lane("b", 5, 1, known=1, samples=1)], left=["a"])
    assert len(book) == 1


def test_a_root_may_carry_drafts_behind_its_known_token():
    lane = TickBook().lane("a", 5, 4, known=1, samples=4)
    assert (lane.is_root, lane.drafted, lane.end) == (True, 3, 9)


def test_a_level_has_the_shape_that_was_told_with_the_tick_before():
    book = TickBook(slots=4)
    first = send_root(book, width=2, length=3)
    assert first.shape("a") == book.shape("a") == Shape(2, 3)
    assert book.level("a", 5) == tuple(follower(1, 5, rank, length=3) for rank in range(2))
    assert send_level(book, 5, width=1).shape("a") == Shape()


def test_what_is_not_drafted_has_no_shape():
    book = TickBook()
    tick = book.tick([book.lane("a", 0, 5, known=5, samples=1)], no_draft_req_ids=["a"])
    assert tick.shape("a").width == 0


def test_levels_are_as_wide_as_the_slots_allow():
    book = TickBook(slots=4)
    assert send_root(book, width=9).shape("a").width == 4
    second = send_level(book, 5, width=3)
    assert second.shape("a").width == 1
    third = send_level(book, 6, width=3)
    assert third.shape("a").width == 1
    assert book.unverified("a") == 3
    # With the outcome of the wide level its slots are free, but for the one that goes on.
    book.judge(send_root(TickBook(), 1).lanes[0], outcome(2))
    book.judge(second.lanes[0], outcome(0, rank=2))
    assert book.unverified("a") == 1
    assert send_level(book, 7, width=9).shape("a").width == 4


def test_a_tick_tells_the_newest_outcome_once():
    book = TickBook(slots=4)
    ticks = [send_root(book, 2), send_level(book, 5, 2), send_level(book, 6, 2)]
    book.judge(ticks[0].lanes[0], outcome(1))
    book.judge(ticks[1].lanes[0], outcome(0, rank=1))
    assert book.cacheable("a", final=6) == 5
    assert send_level(book, 7, 1).retired == {"a": Retired(1, rank=1, end=6, continues=0)}
    assert book.cacheable("a", final=6) == 6
    assert send_level(book, 8, 1).retired == {}


def test_after_a_miss_a_root_enters_where_the_burst_was_cut():
    book = TickBook(slots=2)
    lane = book.lane("a", 5, 4, known=1, samples=4)
    book.tick([lane], shapes={"a": Shape(2, 4)})
    send_level(book, 9, 1)
    book.judge(lane, Outcome("a", (1, 2), compared=2, accepted=1))
    assert book.unverified("a") == 0
    again = book.tick([book.lane("a", 7, 1, known=1, samples=1)])
    assert again.retired == {"a": Retired(0, rank=0, end=7)}


def test_outcomes_from_before_a_preemption_are_ignored():
    book = TickBook(slots=2)
    tick = send_root(book, 2)
    book.restart("a")
    book.judge(tick.lanes[0], outcome(1))
    again = send_root(book, 2)
    book.judge(tick.lanes[0], outcome(1))
    assert again.retired == {}
    assert book.unverified("a") == 1


def test_with_one_slot_nothing_is_told_and_all_that_is_final_may_be_hashed():
    book = TickBook()
    tick = send_root(book, width=8)
    book.judge(tick.lanes[0], outcome(0))
    assert tick.shape("a") == Shape()
    assert send_level(book, 5, 8).retired == {}
    assert book.cacheable("a", final=5) == 5


def test_a_re_entry_burst_says_whose_final_state_its_drafts_go_on_from():
    book = TickBook()
    missed, cut = outcome(None), Outcome("a", (7, 8), compared=2, accepted=1)
    first = book.tick([book.lane("a", 0, 5, 5, 1)], reentry_req_ids=["a"])
    assert not book.may_burst("a"), "its outcome is not in"
    book.judge(first.lanes[0], missed)
    assert book.may_burst("a")
    root = book.lane("a", 5, 4, known=1, samples=4)
    assert (root.is_root, root.after) == (True, first.number)
    assert book.lane("a", 5, 1, known=1, samples=1).after is None, "it carries no drafts"
    second = book.tick([root])
    assert not book.may_burst("a"), "the root has entered"
    book.judge(root, cut)
    assert not book.may_burst("a"), "the last stage was not asked for the state"
    third = book.tick([book.lane("a", 7, 1, 1, 1)], reentry_req_ids=["a"])
    book.judge(third.lanes[0], missed)
    book.restart("a")
    assert not book.may_burst("a"), "a request without blocks starts anew"
    assert second.reentry_req_ids == frozenset()


def test_no_final_state_is_sent_where_a_lane_goes_on():
    book = TickBook()
    tick = book.tick([book.lane("a", 0, 5, 5, 1)], reentry_req_ids=["a"])
    book.judge(tick.lanes[0], outcome(0))
    assert not book.may_burst("a")
