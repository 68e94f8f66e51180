"""Before the last stage: what an outcome rules out, and when a tick may start."""

from __future__ import annotations

import pytest
from protocol.lanes import follower, outcome, root, tick_of

from vllm_ppsd.protocol import Lane, OrderError, Retired, StaleBook, TickGate, Verdict


def verdict(tick: int, **continues: int | None) -> Verdict:
    return Verdict(tick, {name: outcome(c, request=name) for name, c in continues.items()})


def alive(book: StaleBook, lanes: list[Lane]) -> list[int]:
    return [lane.rank for lane in lanes if not book.is_stale(lane)]


def tree(book: StaleBook) -> tuple[list[Lane], list[Lane]]:
    """Two levels behind a root: ranks 0, 1; then 0 and 1 behind 1, 2 behind 0."""
    first = [follower(1, 5, rank) for rank in range(2)]
    second = [follower(2, 6, rank, parent) for rank, parent in enumerate([1, 1, 0])]
    for lane in (root(0, 0, 5), *first, *second):
        book.arrive(lane)
    return first, second


def test_only_the_lane_that_goes_on_and_its_descendants_stay_alive():
    book = StaleBook()
    first, second = tree(book)
    assert alive(book, first) == [0, 1]
    assert alive(book, second) == [0, 1, 2]
    book.judge(0, outcome(1))
    assert alive(book, first) == [1]
    assert alive(book, second) == [0, 1]
    third = [book.arrive(follower(3, 7, rank, parent)) for rank, parent in enumerate([2, 0, 1])]
    assert alive(book, third) == [1, 2]
    book.judge(1, outcome(1, rank=1))
    assert alive(book, second) == [1]
    assert alive(book, third) == [2]


def test_after_a_miss_nothing_is_alive_until_a_root_enters():
    book = StaleBook()
    _, second = tree(book)
    book.judge(0, outcome(None))
    assert alive(book, second) == []
    assert book.is_stale(book.arrive(follower(3, 7)))
    book.arrive(root(4, 5))
    assert not book.is_stale(book.arrive(follower(5, 6)))


def test_what_the_scheduler_tells_with_a_tick_is_an_outcome():
    book = StaleBook()
    tree(book)
    lanes = [follower(3, 7, rank, parent) for rank, parent in enumerate([2, 0])]
    book.enter(tick_of(*lanes, retired={"a": Retired(0, 0, end=5, continues=1)}))
    assert alive(book, lanes) == [1]


def test_an_outcome_that_comes_after_the_true_token_is_no_news():
    book = StaleBook()
    book.arrive(root(0, 0, 3))
    book.arrive(root(1, 3))
    book.judge(0, outcome(None))
    assert not book.is_stale(book.arrive(follower(2, 4)))


def test_an_outcome_of_a_request_that_left_is_ignored():
    book = StaleBook()
    book.arrive(root(0, 0, 3))
    book.forget("a")
    book.judge(0, outcome(None))
    assert not book.is_stale(follower(1, 3))
    assert len(book) == 0


def test_the_gate_holds_a_draft_until_the_tick_depth_before_is_judged():
    gate = TickGate(1, StaleBook())
    first, second, third = (tick_of(lane) for lane in (root(0, 0), follower(1, 1), follower(2, 2)))
    assert gate.due(first) == 0
    assert gate.start(first)
    assert gate.due(second) == 0
    assert gate.start(second)
    assert gate.due(third) == 1
    gate.judge(verdict(0, a=0))
    assert gate.due(third) == 0


@pytest.mark.parametrize(("depth", "due"), [(0, 2), (1, 1), (2, 0), (9, 0), (None, 0)])
def test_a_tick_may_say_that_fewer_may_be_unverified(depth: int | None, due: int):
    gate = TickGate(2, StaleBook())
    for lane in (root(0, 0, 3), follower(1, 3)):
        assert gate.start(tick_of(lane))
    assert gate.due(tick_of(follower(2, 4), depth=depth)) == due


def test_verdicts_that_are_owed_until_a_ticks_is_in():
    gate = TickGate(1, StaleBook())
    for lane in (root(0, 0, 3), follower(1, 3), follower(2, 4)):
        gate.start(tick_of(lane))
    assert [gate.owed(number) for number in range(3)] == [1, 2, 3]
    gate.judge(verdict(0, a=0))
    assert [gate.owed(number) for number in range(3)] == [0, 1, 2]


def test_after_a_miss_nothing_is_waited_for():
    book = StaleBook()
    gate = TickGate(1, book)
    for lane in (root(0, 0), follower(1, 1)):
        assert gate.start(book.enter(tick_of(lane)))
    gate.judge(verdict(0, a=None))
    third = book.enter(tick_of(follower(2, 2)))
    assert gate.due(third) == 0
    assert not gate.start(third)
    for lane in (root(3, 1), follower(4, 2)):
        # Two ticks of stale lanes are still unjudged.
        tick = book.enter(tick_of(lane))
        assert gate.due(tick) == 0
        assert gate.start(tick)
    assert gate.unjudged == 4
    for number in (1, 2):
        gate.judge(verdict(number))
    assert gate.due(book.enter(tick_of(follower(5, 3)))) == 1


def test_a_tick_is_run_for_one_lane_that_may_count():
    book = StaleBook()
    gate = TickGate(1, book)
    gate.start(book.enter(tick_of(root(0, 0), root(0, 0, request="b"))))
    gate.judge(verdict(0, a=None, b=0))
    assert gate.start(book.enter(tick_of(follower(1, 1), follower(1, 1, request="b"))))
    assert not gate.start(book.enter(tick_of(follower(2, 2))))


def test_a_verdict_out_of_turn_is_an_error():
    gate = TickGate(1, StaleBook())
    gate.start(tick_of(root(0, 0)))
    with pytest.raises(OrderError, match="tick 1 came where 0"):
        gate.judge(verdict(1))


def test_what_the_scheduler_has_read_does_not_stay_behind():
    """Roots wait for nothing, so a request that enters as roots alone would leave all verdicts."""
    book = StaleBook()
    gate = TickGate(1, book)
    for number in range(3):
        gate.start(tick_of(root(number, number, 1)))
    entering = tick_of(root(3, 3, 1), read=1)
    assert gate.due(entering) == 2
    for number in range(2):
        gate.judge(Verdict(number))
    assert gate.due(entering) == 0
    assert gate.unjudged == 1
