"""The last stage: which lane counts, and how many of its samples."""

from __future__ import annotations

import pytest
from protocol.lanes import candidate, follower, root

from vllm_ppsd.protocol import Candidate, Draft, Outcome, RetirementBook

BURST = (Draft(1), Draft(2), Draft(3))


def test_a_drafted_lane_counts_only_behind_a_hit_at_its_position():
    book = RetirementBook()
    first = root(0, 0, 4)
    assert book.counts(first)
    hit = book.retire(first, [7], [candidate(7)])
    assert hit == Outcome("a", (7,), compared=1, accepted=1, continues=0, redrafted=0)
    assert not hit.missed
    assert book.counts(follower(1, 4))
    assert not book.counts(follower(2, 5))
    assert not book.counts(follower(1, 4, request="b"))
    miss = book.retire(follower(1, 4), [8], [candidate(9)])
    assert miss == Outcome("a", (8,), compared=1, accepted=0, redrafted=0)
    assert miss.missed
    assert not book.counts(follower(2, 5))
    assert book.counts(root(2, 5))


def test_behind_a_lane_without_drafts_nothing_is_missed():
    outcome = RetirementBook().retire(root(0, 0), [7], [])
    assert outcome == Outcome("a", (7,), compared=0, accepted=0)
    assert not outcome.missed


@pytest.mark.parametrize(
    ("sampled", "tokens", "accepted", "continues"),
    [
        ([1, 2, 3, 4], (1, 2, 3, 4), 4, 1),
        ([1, 2, 3, 9], (1, 2, 3, 9), 3, None),
        ([1, 2, 9, 4], (1, 2, 9), 2, None),
        ([9, 2, 3, 4], (9,), 0, None),
    ],
)
def test_a_burst_is_retired_up_to_its_first_wrong_draft(sampled, tokens, accepted, continues):
    outcome = RetirementBook().retire(
        root(0, 5, 4, drafted=3), sampled, [candidate(5), candidate(4)], BURST
    )
    assert outcome == Outcome("a", tokens, len(tokens), accepted, continues, redrafted=3)
    assert outcome.missed == (continues is None)


@pytest.mark.parametrize(
    ("replaces", "first", "accepted", "continues", "overwritten"),
    [
        (0, 4, 2, None, 0),
        (1, 9, 3, 0, 0),
        (1, 3, 2, None, 0),
        (2, 9, 2, None, 1),
        (3, 9, 2, None, 2),
    ],
)
def test_a_lane_that_replaces_drafts_goes_on_where_the_first_of_them_is_wrong(
    replaces, first, accepted, continues, overwritten
):
    book = RetirementBook()
    behind = Candidate((Draft(first), Draft(8)), replaces=replaces)
    outcome = book.retire(root(0, 5, 4, drafted=3), [1, 2, 9, 4], [behind], BURST)
    assert outcome.tokens == (1, 2, 9)
    assert (outcome.compared, outcome.accepted) == (3, accepted)
    assert (outcome.continues, outcome.overwritten) == (continues, overwritten)
    assert book.counts(follower(1, 8, length=2)) == (continues is not None)
    assert outcome.missed == (continues is None)


def test_a_lane_that_replaces_a_right_draft_costs_the_entries_behind():
    behind = Candidate((Draft(9),), replaces=2)
    outcome = RetirementBook().retire(root(0, 5, 4, drafted=3), [1, 2, 3, 4], [behind], BURST)
    assert (outcome.tokens, outcome.accepted) == ((1, 2, 3, 4), 3)
    assert (outcome.missed, outcome.overwritten) == (True, 2)


def test_the_drafts_of_a_following_burst_are_those_of_its_candidate():
    book = RetirementBook()
    book.retire(root(0, 5), [1], [candidate(8, 8), candidate(1, 2)])
    assert book.counts(follower(1, 6, rank=1, length=2))
    assert not book.counts(follower(1, 6, rank=0, length=2))
    outcome = book.retire(follower(1, 6, rank=1, length=2), [2, 3], [])
    assert outcome == Outcome("a", (2, 3), compared=1, accepted=1, rank=1)


def test_only_a_child_of_the_lane_goes_on():
    book = RetirementBook()
    book.retire(root(0, 5), [1], [candidate(0), candidate(1)])
    behind = [candidate(4, parent=0), candidate(9, parent=1), candidate(4, parent=1)]
    outcome = book.retire(follower(1, 6, rank=1), [4], behind)
    assert (outcome.rank, outcome.continues) == (1, 2)


def test_if_all_candidates_are_of_other_lanes_the_request_is_flushed():
    book = RetirementBook()
    book.retire(root(0, 5), [1], [candidate(0), candidate(1)])
    outcome = book.retire(follower(1, 6, rank=1), [4], [candidate(4, parent=0)])
    assert outcome.missed
    assert outcome.continues is None


def test_nothing_is_kept_of_a_request_that_left():
    book = RetirementBook()
    book.retire(root(0, 5), [1], [candidate(1)])
    assert len(book) == 1
    book.forget("a")
    assert len(book) == 0
