"""Stage 0: a lane embeds the candidate of its rank."""

from __future__ import annotations

import pytest
from protocol.lanes import candidate, follower, outcome, root, tick_of

from vllm_ppsd.protocol import DraftBook, Drafts, MissingDraftError


def test_stage_0_embeds_its_draft_until_it_hears_of_a_miss():
    book = DraftBook()
    book.arrive(root(0, 0, 3))
    book.propose(Drafts(0, {"a": (candidate(17),)}))
    lane = book.arrive(follower(1, 3))
    assert book.inputs(lane) == [17]
    assert not book.is_stale(lane)
    book.judge(0, outcome(None))
    assert book.is_stale(lane)
    assert book.inputs(book.arrive(follower(2, 4))) == [0]  # stale: needs no draft
    again = book.arrive(root(3, 3))
    assert book.inputs(again) == []
    assert not book.is_stale(again)


def test_siblings_embed_their_candidates_and_get_their_parents():
    book = DraftBook()
    book.enter(tick_of(root(0, 0, 3)))
    book.propose(Drafts(0, {"a": (candidate(1, 2), candidate(3, 4))}))
    level = book.enter(tick_of(*(follower(1, 3, rank, length=2) for rank in range(2))))
    assert [book.inputs(lane) for lane in level.lanes] == [[1, 2], [3, 4]]
    book.propose(Drafts(1, {"a": (candidate(5, parent=1), candidate(6), candidate(7, parent=1))}))
    level = book.enter(tick_of(*(follower(2, 5, rank) for rank in range(3))))
    assert [lane.parent for lane in level.lanes] == [1, 0, 1]
    assert [book.inputs(lane) for lane in level.lanes] == [[5], [6], [7]]


@pytest.mark.parametrize("proposed", [None, (1, [candidate(1)]), (0, []), (0, [candidate(1)])])
def test_a_missing_draft_is_an_error(proposed):
    book = DraftBook()
    book.arrive(root(0, 0, 3))
    if proposed is not None:
        tick, candidates = proposed
        book.propose(Drafts(tick, {"a": tuple(candidates)}))
    with pytest.raises(MissingDraftError, match="position 3"):
        book.inputs(book.arrive(follower(1, 3, length=2)))


def test_a_lane_may_carry_fewer_drafts_than_were_made():
    book = DraftBook()
    book.arrive(root(0, 0, 3))
    book.propose(Drafts(0, {"a": (candidate(1, 2, 3),)}))
    assert book.inputs(book.arrive(follower(1, 3, length=2))) == [1, 2]


def test_nothing_is_kept_of_a_request_that_left():
    book = DraftBook()
    book.enter(tick_of(root(0, 0, 3)))
    book.propose(Drafts(0, {"a": (candidate(17),)}))
    book.enter(tick_of(root(1, 0, request="b"), left=("a",)))
    assert len(book) == 1
    with pytest.raises(MissingDraftError):
        book.inputs(follower(1, 3))
