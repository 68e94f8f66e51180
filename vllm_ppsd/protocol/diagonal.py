"""What a multi-depth head reads: the states of the tokens before, from later stages.

When stage 0 drafts behind position p, stage k has just run position p - k of the same
request. A later stage sends stage 0 the states of every tick, in order; this book says
which of them belong to which position. Of most lanes that is the last position's state; a
lane that is alone in its tick may come with those of all its positions, so that a prompt
can be read along the same diagonal.

Invariant: position p reads the states of the lane that last entered at p - k, never those
of an earlier one. If that lane turns out stale, so does the lane at p, which depends on
it; so the states of a stale lane never reach a position that counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_ppsd.protocol.retirement import Lane

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    """A lane that entered, and per source the states of its last positions that are in."""

    tick: int
    lane: Lane
    states: dict[int, Sequence[T]] = field(default_factory=dict)

    def read(self, source: int, position: int) -> T | None:
        states = self.states.get(source, ())
        from_end = self.lane.end - position
        return states[-from_end] if from_end <= len(states) else None


class DiagonalBook(Generic[T]):
    """Stage 0's.

    Args:
        lags: per source of states, by how many ticks its stage is behind stage 0.
    """

    def __init__(self, lags: Sequence[int]) -> None:
        self._lags = tuple(lags)
        self._ticks = 0
        self._arrived = [0] * len(lags)
        self._awaited: list[deque[tuple[Lane, ...]]] = [deque() for _ in lags]
        self._entries: dict[str, list[_Entry[T]]] = {}

    def enter(self, lanes: Iterable[Lane]) -> None:
        """A tick with these lanes, in row order, starts on stage 0."""
        tick = tuple(lanes)
        for lane in tick:
            oldest = lane.position - max(self._lags) - 1
            kept = self._entries.get(lane.request_id, [])
            self._entries[lane.request_id] = [
                *(entry for entry in kept if oldest < entry.lane.end <= lane.position),
                _Entry(self._ticks, lane),
            ]
        self._ticks += 1
        for awaited in self._awaited:
            awaited.append(tick)

    def arrive(self, source: int, states: Sequence[T] | None) -> None:
        """The states of the oldest tick that a source owes are in.

        Args:
            states: one per lane, of its last position; of a lane alone, of as many of its
                last positions as there are; None if the stage did not run it.
        """
        tick, lanes = self._arrived[source], self._awaited[source].popleft()
        self._arrived[source] += 1
        if states is None:
            return
        by_lane = [states] if len(lanes) == 1 else [[state] for state in states]
        for lane, found in zip(lanes, by_lane, strict=True):
            for entry in self._entries.get(lane.request_id, []):
                if entry.tick == tick:
                    entry.states[source] = found

    def owed(self, source: int, lanes: Iterable[Lane]) -> int:
        """Return how many more messages of a source bring all that these lanes read."""
        ticks = [
            entry.tick
            for lane in lanes
            if (entry := self._entry(lane, lane.end - 1 - self._lags[source])) is not None
        ]
        return max(0, max(ticks, default=-1) + 1 - self._arrived[source])

    def read(self, lane: Lane, source: int, late: bool) -> list[T | None]:
        """Return what every position of a lane reads of a source; None where there is nothing.

        Args:
            late: whether the state of one position before will do if this one's is
                not in.
        """
        lags = range(self._lags[source], self._lags[source] + 1 + late)
        return [
            self._newest(lane, source, position, lags)
            for position in range(lane.position, lane.end)
        ]

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._entries.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._entries)

    def _newest(self, lane: Lane, source: int, position: int, lags: Iterable[int]) -> T | None:
        for lag in lags:
            entry = self._entry(lane, position - lag)
            state = entry.read(source, position - lag) if entry is not None else None
            if state is not None:
                return state
        return None

    def _entry(self, lane: Lane, position: int) -> _Entry[T] | None:
        """Return the entry of a lane's request that holds a position."""
        for entry in self._entries.get(lane.request_id, []):
            if entry.lane.position <= position < entry.lane.end:
                return entry
        return None
