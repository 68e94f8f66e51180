"""The scheduler's counters, and how far ahead it sends."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol import Flight, flush, may_enter, steps_in_flight


def test_flush_rewinds_to_the_retired_position():
    after = flush(Flight(computed=12, unverified=2, in_flight=2))
    assert after == Flight(computed=10, unverified=0, in_flight=2, stale=2)


def test_of_a_burst_that_is_cut_the_positions_behind_the_cut_are_rewound():
    # Positions 10 to 13 were one lane, 14 to 17 the next; two tokens of the first are retired.
    after = flush(Flight(computed=18, unverified=8 - 2, in_flight=4))
    assert after == Flight(computed=12, unverified=0, in_flight=4, stale=4)


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
