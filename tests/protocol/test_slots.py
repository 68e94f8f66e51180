"""Where siblings' entries are, and what is copied."""

from __future__ import annotations

import pytest
from protocol.lanes import follower, root, tick_of

from vllm_ppsd.protocol import Copy, Lane, Retired, SlotBook, SlotError, Tick, slot_blocks


def level(tick: int, position: int, parents: list[int], **fields) -> Tick:
    lanes = (follower(tick, position, rank, parent) for rank, parent in enumerate(parents))
    return tick_of(*lanes, **fields)


def slots(book: SlotBook, tick: Tick) -> list[int | None]:
    return [book.slot(lane) for lane in tick.lanes]


def entered(count: int, block_size: int = 4) -> SlotBook:
    """A book with a root of 6 known tokens."""
    book = SlotBook(count, block_size)
    assert book.enter(tick_of(root(0, 0, 6))) == []
    return book


def test_without_siblings_all_is_in_the_main_blocks():
    book = entered(1)
    for number in range(1, 20):
        tick = level(number, 5 + number, [0])
        assert book.enter(tick) == []
        assert slots(book, tick) == [0]


def test_the_first_child_goes_on_in_its_parents_slot_and_the_others_copy_the_tail():
    book = entered(3)
    assert book.boundary("a") == 4  # one full block of known tokens is shared
    first = level(1, 6, [0, 0])
    assert book.enter(first) == [Copy("a", 0, 1, 4, 6)]
    assert slots(book, first) == [0, 1]
    second = level(2, 7, [1, 1])
    assert book.enter(second) == [Copy("a", 1, 2, 4, 7)]
    assert slots(book, second) == [1, 2]


def test_a_lane_that_counted_is_promoted_and_the_slots_of_the_others_are_free():
    book = entered(3)
    book.enter(level(1, 6, [0, 0]))
    book.enter(level(2, 7, [1, 1]))
    # The scheduler has heard that rank 1 went on behind the root, and then rank 0 behind it.
    told = {"a": Retired(1, rank=1, end=7, continues=0)}
    third = level(3, 8, [0, 0, 1], retired=told)
    assert book.enter(third) == [Copy("a", 1, 0, 6, 7), Copy("a", 1, 0, 7, 8)]
    # Rank 2 is behind a lane that this very tick rules out.
    assert slots(book, third) == [1, 0, None]


def test_a_child_copies_only_what_its_slot_lacks():
    book = entered(2, block_size=16)
    copied = []
    for number in range(1, 12):
        told = {"a": Retired(number - 2, 0, 4 + number, 0)} if number > 1 else {}
        copied += book.enter(level(number, 5 + number, [0, 0], retired=told))
    assert copied[0] == Copy("a", 0, 1, 0, 6)
    assert copied[1:] == [Copy("a", 0, 1, 5 + n, 6 + n) for n in range(1, 11)]
    assert len(copied) == 11


def test_the_slot_of_a_lane_without_children_is_kept_until_its_fate_is_told():
    book = entered(3)
    book.enter(level(1, 6, [0, 0]))
    book.enter(level(2, 7, [0, 0]))
    with pytest.raises(SlotError, match="all 3 are busy"):
        book.enter(level(3, 8, [0, 0]))


def test_a_re_entry_finds_what_was_retired_in_the_main_blocks():
    book = entered(2)
    book.enter(level(1, 6, [0, 0]))
    again = tick_of(root(2, 7), retired={"a": Retired(1, rank=1, end=7)})
    assert book.enter(again) == [Copy("a", 1, 0, 6, 7)]
    assert slots(book, again) == [0]
    assert book.boundary("a") == 8


def test_of_a_burst_that_is_cut_only_the_retired_rows_are_promoted():
    book = entered(2)
    lanes = [follower(1, 6, rank, length=4) for rank in range(2)]
    book.enter(tick_of(*lanes))
    again = tick_of(root(2, 8), retired={"a": Retired(1, rank=1, end=8)})
    assert book.enter(again) == [Copy("a", 1, 0, 6, 8)]


def test_a_root_that_no_outcome_leads_to_trusts_no_scratch_block():
    book = entered(2)
    book.enter(level(1, 6, [0, 0]))
    book.enter(tick_of(root(2, 0, 6)))  # preempted
    assert book.enter(level(3, 6, [0, 0])) == [Copy("a", 0, 1, 4, 6)]


def test_nothing_is_kept_of_a_request_that_left():
    book = entered(2)
    book.enter(tick_of(root(1, 0, request="b"), left=("a",)))
    assert len(book) == 1


@pytest.mark.parametrize(
    ("block_size", "depth", "length", "blocks"), [(16, 1, 1, 2), (16, 3, 4, 3), (4, 2, 1, 2)]
)
def test_a_slot_holds_a_part_of_a_block_and_what_may_be_unverified(
    block_size: int, depth: int, length: int, blocks: int
):
    assert slot_blocks(block_size, depth, length) == blocks


def test_lanes_of_other_requests_have_slots_of_their_own():
    book = SlotBook(2, 4)
    book.enter(tick_of(root(0, 0, 6), root(0, 0, 6, request="b")))
    lanes: list[Lane] = [
        follower(1, 6, rank, request=request) for request in "ab" for rank in range(2)
    ]
    copies = book.enter(tick_of(*lanes))
    assert copies == [Copy(request, 0, 1, 4, 6) for request in "ab"]
    assert [book.slot(lane) for lane in lanes] == [0, 1, 0, 1]
