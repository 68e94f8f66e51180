"""What a multi-depth head reads: the states of the tokens before, from later stages.

When stage 0 drafts behind position p, stage k has just run position p - k of the same
request. A later stage sends stage 0 the states of every tick, in order; this book says
which of them belong to which position.

A request has one lane in a tick; a lane of several tokens reads nothing.

Invariant: position p reads the states of the lane that last entered at p - k, never those
of an earlier one. If that lane turns out stale, so does the lane at p, which depends on
it; so the states of a stale lane never reach a position that counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_ppsd.protocol.pruning import OrderError
from vllm_ppsd.protocol.tick import Lane

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    """The lane that last entered at a position, and the states of it that are in."""

    tick: int
    states: dict[int, T] = field(default_factory=dict)


class DiagonalBook(Generic[T]):
    """Stage 0's.

    Args:
        lags: per source of states, by how many ticks its stage is behind stage 0.
    """

    def __init__(self, lags: Sequence[int]) -> None:
        self._lags = tuple(lags)
        self._awaited: list[deque[tuple[Lane, ...]]] = [deque() for _ in lags]
        self._entries: dict[str, dict[int, _Entry[T]]] = {}

    def enter(self, lanes: Iterable[Lane]) -> None:
        """A tick with these lanes, in row order, starts on stage 0."""
        tick = tuple(lanes)
        for lane in tick:
            kept = self._entries.setdefault(lane.request_id, {})
            oldest = lane.position - max(self._lags)
            for position in [p for p in kept if p >= lane.position or p < oldest]:
                del kept[position]
            kept[lane.end - 1] = _Entry(lane.tick)
        for awaited in self._awaited:
            awaited.append(tick)

    def arrive(self, source: int, tick: int, states: Sequence[T] | None) -> None:
        """The states of the oldest tick that a source owes are in.

        Args:
            source: which source.
            tick: number of the tick that they are of.
            states: one per lane, of its last position; None if the stage did not run it.

        Raises:
            OrderError: they are of another tick.
        """
        lanes = self._awaited[source].popleft()
        if tick != lanes[0].tick:
            raise OrderError(f"states of tick {tick} came where {lanes[0].tick}'s were due")
        for lane, state in zip(lanes, states or (), strict=states is not None):
            entry = self._entries.get(lane.request_id, {}).get(lane.end - 1)
            if entry is not None and entry.tick == tick:
                entry.states[source] = state

    def owed(self, source: int, lanes: Iterable[Lane]) -> int:
        """Return how many more messages of a source bring all that these lanes read."""
        ticks = [
            entry.tick
            for lane in lanes
            if (entry := self._entry(lane, self._lags[source])) is not None
        ]
        newest = max(ticks, default=-1)
        return sum(awaited[0].tick <= newest for awaited in self._awaited[source])

    def read(self, lane: Lane, source: int) -> T | None:
        """Return what a lane reads of a source; None if there is nothing.

        Prompts read nothing: their positions go through the pipeline at once.
        """
        entry = self._entry(lane, self._lags[source])
        return entry.states.get(source) if entry is not None else None

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._entries.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._entries)

    def _entry(self, lane: Lane, lag: int) -> _Entry[T] | None:
        if lane.length != 1:
            return None
        return self._entries.get(lane.request_id, {}).get(lane.position - lag)
