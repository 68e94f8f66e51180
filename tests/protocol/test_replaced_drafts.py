"""Lanes that take the place of drafts of the lane before: where they stand, and what is lost."""

from __future__ import annotations

import msgspec
import pytest
from protocol.lanes import follower, root, tick_of
from protocol.test_pipeline import make, run

from vllm_ppsd.protocol import (
    Candidate,
    Draft,
    Drafts,
    Flight,
    MissingDraftError,
    Outcome,
    PlaceBook,
    RetirementBook,
    without_replaced,
)


def drafts_of(tick: int, replaces: int, request: str = "a") -> Drafts:
    return Drafts(tick, {request: (Candidate((Draft(1),), replaces=replaces),)})


def placed(book: PlaceBook, *lanes, read: int = -1) -> list[int]:
    return [lane.position for lane in book.enter(tick_of(*lanes, read=read)).lanes]


def test_lanes_move_by_what_the_scheduler_has_not_read():
    book = PlaceBook()
    book.propose(drafts_of(0, 2))
    assert placed(book, follower(1, 9, length=3)) == [7]
    book.propose(drafts_of(1, 1))
    assert placed(book, follower(2, 12, length=3)) == [9]
    assert placed(book, follower(3, 13), read=0) == [12]
    assert placed(book, follower(4, 13), read=1) == [13]
    assert len(book) == 0


def test_a_root_stands_where_it_was_sent_to():
    book = PlaceBook()
    book.propose(drafts_of(0, 2))
    book.propose(drafts_of(0, 1, "b"))
    assert placed(book, root(1, 6), follower(1, 9, request="b")) == [6, 8]
    assert placed(book, follower(2, 7)) == [7]


def test_a_request_that_leaves_is_forgotten():
    book = PlaceBook()
    book.propose(drafts_of(0, 2))
    assert book.enter(tick_of(root(1, 0), left=("a",))).lanes == (root(1, 0),)
    assert len(book) == 0


def test_replaced_drafts_are_in_flight_no_longer():
    before = Flight(computed=12, unverified=5, in_flight=6)
    assert without_replaced(before, 2) == Flight(computed=10, unverified=3, in_flight=6)


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_output_equals_plain_decoding(stages: int, depth: int):
    replaced = overwritten = 0
    for seed in range(60):
        pipeline = make(
            seed,
            seed % 4 + 1,
            stages=stages,
            depth=depth,
            acceptance=(0.3, 0.6, 0.9)[seed % 3],
            burst=4,
            reentry=4,
            redraft=0.5,
        )
        run(pipeline)
        replaced += pipeline.counts["replaced"]
        overwritten += pipeline.counts["overwritten"]
    assert replaced > 60
    assert overwritten > 60


@pytest.mark.parametrize("depth", range(1, 6))
def test_preemption_resets_aborts_and_short_ticks_keep_output(depth: int):
    counts = dict.fromkeys(("replaced", "overwritten", "preemptions", "resets", "shortened"), 0)
    for seed in range(60):
        pipeline = make(
            seed,
            3,
            stages=2 + seed % 3,
            depth=depth,
            acceptance=0.6,
            burst=4,
            reentry=3,
            redraft=0.5,
            hold=0.2,
            no_draft=0.2,
            cut=0.2,
            preempt=0.03,
            reset=0.02,
            abort=0.01,
        )
        run(pipeline, disturbed=260)
        for name in counts:
            counts[name] += pipeline.counts[name]
    assert all(count > 20 for count in counts.values()), counts


def nothing_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outcome, "overwritten", 0)


def one_position_too_few_enters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    overwritten = Outcome.overwritten.fget
    monkeypatch.setattr(
        Outcome, "overwritten", property(lambda outcome: max(0, overwritten(outcome) - 1))
    )


def lanes_stand_where_they_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlaceBook, "enter", lambda self, tick: tick)


def what_the_scheduler_has_read_moves_lanes_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    place = PlaceBook._place
    monkeypatch.setattr(PlaceBook, "_place", lambda self, lane, read: place(self, lane, read - 1))


def replaced_drafts_stay_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.pipeline.without_replaced", lambda flight, replaced: flight)


def a_lane_goes_on_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    following = RetirementBook._next

    def patched(self, lane, token, candidates, replaces):
        candidates = [msgspec.structs.replace(one, replaces=replaces) for one in candidates]
        return following(self, lane, token, candidates, replaces)

    monkeypatch.setattr(RetirementBook, "_next", patched)


@pytest.mark.parametrize(
    "broken",
    [
        nothing_is_overwritten,
        one_position_too_few_enters_again,
        lanes_stand_where_they_were_sent,
        what_the_scheduler_has_read_moves_lanes_once_more,
        replaced_drafts_stay_in_flight,
        a_lane_goes_on_wherever_it_stands,
    ],
)
def test_a_broken_rule_is_seen(broken, monkeypatch: pytest.MonkeyPatch):
    broken(monkeypatch)
    with pytest.raises((AssertionError, ValueError, LookupError, MissingDraftError)):
        for seed in range(200):
            run(
                make(
                    seed,
                    2,
                    stages=3,
                    depth=2,
                    acceptance=0.7,
                    burst=3,
                    reentry=3,
                    redraft=0.5,
                )
            )
