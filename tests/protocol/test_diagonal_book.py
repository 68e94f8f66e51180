"""Which states of later stages belong to which position."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol import DiagonalBook, Lane, OrderError


def known(tick: int, position: int, length: int = 1, request: str = "a") -> Lane:
    return Lane(request, tick, position, length)


def drafted(tick: int, position: int, request: str = "a") -> Lane:
    return Lane(request, tick, position, drafted=1, behind=tick - 1)


def test_a_prompt_reads_nothing_and_the_first_token_reads_its_last_position():
    book: DiagonalBook[str] = DiagonalBook([1])
    prompt, lane = known(0, 0, 5), drafted(1, 5)
    book.enter([prompt])
    assert book.owed(0, [prompt]) == 0
    assert book.read(prompt, 0) is None
    book.enter([lane])
    assert book.owed(0, [lane]) == 1
    book.arrive(0, 0, ["F4"])
    assert book.owed(0, [lane]) == 0
    assert book.read(lane, 0) == "F4"


def test_a_third_stage_is_two_positions_behind():
    book: DiagonalBook[str] = DiagonalBook([1, 2])
    for lane in (known(0, 0, 3), drafted(1, 3), drafted(2, 4)):
        book.enter([lane])
    for source in (0, 1):
        book.arrive(source, 0, [f"{source}@2"])
    book.arrive(0, 1, ["0@3"])
    assert book.read(drafted(2, 4), 0) == "0@3"
    assert book.read(drafted(2, 4), 1) == "1@2"


def test_after_a_flush_the_stale_lane_leaves_nothing():
    book: DiagonalBook[str] = DiagonalBook([1])
    for lane in (known(0, 0, 3), drafted(1, 3), drafted(2, 4)):
        book.enter([lane])
    book.arrive(0, 0, ["F2"])
    book.enter([known(3, 3)])
    book.arrive(0, 1, ["stale F3"])
    book.arrive(0, 2, ["stale F4"])
    book.enter([drafted(4, 4)])
    assert book.read(drafted(4, 4), 0) is None
    assert book.owed(0, [drafted(4, 4)]) == 1
    book.arrive(0, 3, ["F3"])
    assert book.read(drafted(4, 4), 0) == "F3"


def test_skipped_ticks_bring_nothing_but_are_counted():
    book: DiagonalBook[str] = DiagonalBook([1])
    book.enter([known(0, 0, 3)])
    book.enter([drafted(1, 3)])
    book.arrive(0, 0, None)
    assert book.owed(0, [drafted(1, 3)]) == 0
    assert book.read(drafted(1, 3), 0) is None


def test_states_of_another_tick_are_an_error():
    book: DiagonalBook[str] = DiagonalBook([1])
    book.enter([known(4, 0, 3)])
    with pytest.raises(OrderError, match="states of tick 5 came where 4's were due"):
        book.arrive(0, 5, ["F2"])


def test_nothing_is_kept_of_requests_that_left_and_of_positions_long_gone():
    book: DiagonalBook[str] = DiagonalBook([1])
    book.enter([known(0, 0, 3), known(0, 0, 2, "b")])
    book.forget("b")
    book.arrive(0, 0, ["F2", "F1"])
    assert len(book) == 1
    for position in range(3, 50):
        book.enter([drafted(position, position)])
        book.arrive(0, position, [f"F{position}"])
    assert len(book._entries["a"]) <= 4
    book.forget("a")
    assert len(book) == 0
