"""Which states of later stages belong to which position."""

from __future__ import annotations

from vllm_ppsd.protocol import DiagonalBook, Lane


def known(position: int, length: int = 1, request: str = "a") -> Lane:
    return Lane(request, 0, position, length)


def drafted(position: int, request: str = "a") -> Lane:
    return Lane(request, 1, position, drafted=1, behind=0)


def test_a_prompt_reads_nothing_and_the_first_token_reads_its_last_position():
    book: DiagonalBook[str] = DiagonalBook([1])
    prompt = known(0, 5)
    book.enter([prompt])
    assert book.owed(0, [prompt]) == 0
    assert book.read(prompt, 0) is None
    book.enter([drafted(5)])
    assert book.owed(0, [drafted(5)]) == 1
    book.arrive(0, ["F4"])
    assert book.owed(0, [drafted(5)]) == 0
    assert book.read(drafted(5), 0) == "F4"


def test_a_third_stage_is_two_positions_behind():
    book: DiagonalBook[str] = DiagonalBook([1, 2])
    for lane in (known(0, 3), drafted(3), drafted(4)):
        book.enter([lane])
    for source in (0, 1):
        book.arrive(source, [f"{source}@2"])
    book.arrive(0, ["0@3"])
    assert book.read(drafted(4), 0) == "0@3"
    assert book.read(drafted(4), 1) == "1@2"


def test_after_a_flush_the_stale_lane_leaves_nothing():
    book: DiagonalBook[str] = DiagonalBook([1])
    for lane in (known(0, 3), drafted(3), drafted(4)):
        book.enter([lane])
    book.arrive(0, ["F2"])
    book.enter([known(3)])
    book.arrive(0, ["stale F3"])
    book.arrive(0, ["stale F4"])
    book.enter([drafted(4)])
    assert book.read(drafted(4), 0) is None
    assert book.owed(0, [drafted(4)]) == 1
    book.arrive(0, ["F3"])
    assert book.read(drafted(4), 0) == "F3"


def test_skipped_ticks_bring_nothing_but_are_counted():
    book: DiagonalBook[str] = DiagonalBook([1])
    book.enter([known(0, 3)])
    book.enter([drafted(3)])
    book.arrive(0, None)
    assert book.owed(0, [drafted(3)]) == 0
    assert book.read(drafted(3), 0) is None


def test_nothing_is_kept_of_requests_that_left_and_of_positions_long_gone():
    book: DiagonalBook[str] = DiagonalBook([1])
    book.enter([known(0, 3), known(0, 2, "b")])
    book.forget("b")
    book.arrive(0, ["F2", "F1"])
    assert len(book) == 1
    for position in range(3, 50):
        book.enter([drafted(position)])
        book.arrive(0, [f"F{position}"])
    assert len(book._entries["a"]) <= 4
    book.forget("a")
    assert len(book) == 0
