"""Before the last stage: which lanes need not run, and when a tick may start.

Every stage but the last takes in the last stage's verdicts as they come. An outcome says which
lane of a tick counted and which lane of the next tick continues it. Of the request's lanes in
flight, only that one and its descendants are not stale then; if there is none, all are stale
until a root enters.

A verdict only saves work. Whichever verdicts a stage has received, a lane that will count is
not stale there, nor were its ancestors when they passed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from vllm_ppsd.protocol.tick import Lane, LaneId, Outcome, Tick, Verdict


class OrderError(RuntimeError):
    """A message is not of the tick that is due."""


@dataclass(slots=True)
class _Flight:
    """What has come of a request since its newest root.

    Attributes:
        root: number of the root's tick.
        parents: of every lane in flight behind the newest outcome.
        judged: number of the tick that the newest outcome is of; -1 before the first.
        continues: rank of the lane behind that tick that continues the request.
    """

    root: int
    parents: dict[LaneId, LaneId] = field(default_factory=dict)
    judged: int = -1
    continues: int | None = None


class StaleBook:
    """Which lanes are stale, as far as the outcomes taken in tell."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    def enter(self, tick: Tick) -> Tick:
        """Take in a tick that has arrived; return it with the parents of its lanes."""
        for request_id in tick.left:
            self.forget(request_id)
        for request_id, retired in tick.retired.items():
            self._rule_out(request_id, retired.tick, retired.continues)
        lanes = tuple(self.arrive(lane) for lane in tick.lanes)
        return tick if lanes == tick.lanes else msgspec.structs.replace(tick, lanes=lanes)

    def arrive(self, lane: Lane) -> Lane:
        """Take in a lane that has come; return it with its parent.

        A root needs nothing of what was in flight before it.
        """
        if lane.behind is None:
            self._flights[lane.request_id] = _Flight(lane.tick)
        elif flight := self._flights.get(lane.request_id):
            flight.parents[lane.id] = lane.behind, lane.parent
        return lane

    def judge(self, tick: int, outcome: Outcome) -> None:
        """Take in the outcome of a tick.

        The scheduler may have received a miss first: once a root has entered, the outcome of
        an earlier tick says nothing new. A request that has left is ignored.
        """
        self._rule_out(outcome.request_id, tick, outcome.continues)

    def is_stale(self, lane: Lane) -> bool:
        """Whether a lane that has come is known to be stale by the outcomes so far."""
        flight = self._flights.get(lane.request_id)
        if lane.behind is None or flight is None or flight.judged < 0:
            return False
        if flight.continues is None:
            return True
        rank, ancestor = lane.rank, (lane.behind, lane.parent)
        while ancestor[0] > flight.judged:
            rank, ancestor = ancestor[1], flight.parents[ancestor]
        return rank != flight.continues

    def knows(self, request_id: str) -> bool:
        """Whether a lane of the request has come, and the request has not left."""
        return request_id in self._flights

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._flights.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._flights)

    def _rule_out(self, request_id: str, tick: int, continues: int | None) -> None:
        flight = self._flights.get(request_id)
        if flight is None or tick < flight.root or tick <= flight.judged:
            return
        flight.judged, flight.continues = tick, continues
        flight.parents = {lane: p for lane, p in flight.parents.items() if lane[0] > tick}


class TickGate:
    """Which ticks may start on a stage before the last, and which it need not run.

    The scheduler sends one tick more than may be unverified, so that stage 0 never waits for the
    scheduler's answer. Stage 0 holds that tick until the verdict of the tick ``depth + 1`` before
    it is in.

    Args:
        depth: ticks of a request that may be unverified when one starts that embeds drafts,
            unless the tick says fewer.
        book: the stage's, which the outcomes go to.
    """

    def __init__(self, depth: int, book: StaleBook) -> None:
        self._depth, self._book = depth, book
        self._unjudged: deque[tuple[int, set[str]]] = deque()

    @property
    def unjudged(self) -> int:
        """How many ticks have started whose verdicts are not in."""
        return len(self._unjudged)

    def due(self, tick: Tick) -> int:
        """Return how many verdicts must come in before a tick may start.

        Known tokens wait for nothing, and ticks of which nothing counts are not waited
        for: after a miss the true token enters at once. What the scheduler has read is there
        without waiting, and none of it stays behind.
        """
        read = self.owed(tick.read)
        if not any(not lane.is_root and not self._book.is_stale(lane) for lane in tick.lanes):
            return read
        depth = self._depth if tick.depth is None else min(self._depth, tick.depth)
        unverified = sum(bool(alive) for _, alive in self._unjudged)
        verdicts = 0
        for _, alive in self._unjudged:
            if unverified <= depth:
                break
            unverified -= bool(alive)
            verdicts += 1
        return max(read, verdicts)

    def owed(self, number: int) -> int:
        """Return how many verdicts must come in until that of tick ``number`` has."""
        return sum(tick <= number for tick, _ in self._unjudged)

    def judge(self, verdict: Verdict) -> None:
        """Take in the verdict of the oldest unjudged tick.

        Raises:
            OrderError: it is of another tick.
        """
        tick, _ = self._unjudged.popleft()
        if verdict.tick != tick:
            raise OrderError(f"a verdict of tick {verdict.tick} came where {tick}'s was due")
        for outcome in verdict.outcomes.values():
            self._book.judge(tick, outcome)

    def start(self, tick: Tick) -> bool:
        """A tick starts; return False if none of its lanes needs to run.

        What is in flight of a request when a root of it enters is judged already, as far as
        it counts.
        """
        for lane in tick.lanes:
            if lane.is_root:
                for _, alive in self._unjudged:
                    alive.discard(lane.request_id)
        alive = {lane.request_id for lane in tick.lanes if not self._book.is_stale(lane)}
        self._unjudged.append((tick.number, alive))
        return bool(alive)
