"""The scheduler's side: how many positions are in flight, and how a flush rewinds them.

A request's *flight* is the part of its sequence that the scheduler has sent into
the pipeline and whose result has not come back. While every draft is a hit, the
flight slides forward by one level per tick. On a miss everything behind the
retired position becomes stale: the scheduler rewinds to the retired position and
re-enters it with the true token. Positions are counted, not lanes: siblings count once.

What a re-entry carries is decided by ``flush``: the one token that is known and has no entries.
Entries of all tokens before it are kept (see ``slots``), whichever lanes they were made in.

Invariants (held by ``tests/protocol``):

- ``computed - unverified`` is the number of positions whose key/value entries are
  final. It decreases only by a preemption, which resets it to zero, and by entries that a stale
  lane may have overwritten.
- Results come back in the order in which they were sent, so after a flush exactly
  ``stale`` tokens' worth of results drain before the first result that counts.
- Draining a stale result changes nothing but ``in_flight`` and ``stale``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flight:
    """The scheduler's counters of one request, all in tokens.

    Attributes:
        computed: positions sent into the pipeline so far (retired or not).
        unverified: of those, positions whose sampled token has not come back. What an
            outcome retires is subtracted before a flush, so that of a burst that was cut
            the rows behind the cut remain.
        in_flight: tokens of steps whose result has not been processed; unlike
            ``unverified`` it counts prompt tokens and stale lanes too.
        stale: of ``in_flight``, tokens whose result is to be ignored.
    """

    computed: int
    unverified: int
    in_flight: int
    stale: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.unverified <= self.computed:
            raise ValueError(f"unverified positions beyond the computed ones: {self}")
        if not 0 <= self.stale <= self.in_flight:
            raise ValueError(f"stale tokens beyond the tokens in flight: {self}")


def flush(flight: Flight) -> Flight:
    """Rewind a request to its retired position after a miss.

    Every token in flight becomes stale; the next position to enter the pipeline
    is the one just retired, now with its true token.
    """
    return Flight(
        computed=flight.computed - flight.unverified,
        unverified=0,
        in_flight=flight.in_flight,
        stale=flight.in_flight,
    )


def without_replaced(flight: Flight, replaced: int) -> Flight:
    """Take back drafts that the lane behind them, which goes on, has taken the place of.

    All that is in flight of the request stands so many positions before where it was sent to
    (see ``places``).
    """
    return Flight(
        computed=flight.computed - replaced,
        unverified=flight.unverified - replaced,
        in_flight=flight.in_flight,
        stale=flight.stale,
    )


def may_enter(unverified: int, num_speculative_tokens: int, alone: bool) -> bool:
    """Whether one more level of a request may be sent into the pipeline.

    ``unverified`` counts the request's ticks whose outcome is not in: with bursts of one
    token, its unverified positions. The first starts with a known token; every further one
    carries drafts. Stage 0 lets at most ``num_speculative_tokens`` of those be unverified
    when a tick starts; for a request that is ``alone`` one tick more is sent ahead, so
    that stage 0 need not wait for the scheduler. Among others that would cost more
    than it saves: stage 0 can skip the tick behind a miss, but not the one lane of it.
    ``0`` is plain decoding: nothing is sent ahead.
    """
    if num_speculative_tokens == 0:
        return unverified == 0
    return unverified <= num_speculative_tokens + (SENT_AHEAD if alone else 0)


SENT_AHEAD = 1
"""Ticks that wait on stage 0 for a verdict instead of waiting for the scheduler."""


def steps_in_flight(num_speculative_tokens: int) -> int:
    """Return how many ticks the engine must keep in flight for one request."""
    return num_speculative_tokens + 1 + (SENT_AHEAD if num_speculative_tokens else 0)
