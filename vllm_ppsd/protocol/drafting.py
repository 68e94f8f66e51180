"""Before the last stage: which draft a lane embeds, when it may start, when it is skipped.

Stage 0 drafts one token per lane, for the position after the lane. If the
scheduler sends that position on before it knows the true token, stage 0 embeds
its own draft; if it sends a known token, the draft is forgotten.

The scheduler sends one tick more than may be unverified, so that stage 0 never
waits for the scheduler's answer. Stage 0 holds that tick until the last stage's
*verdict* on the tick ``depth`` before it is in; a verdict that comes earlier is taken
in as soon as stage 0 looks. A verdict of a miss makes every drafted lane of the request
stale until a known token re-enters. The stages in the middle hear the verdicts, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum

from vllm_ppsd.protocol.retirement import Lane


class MissingDraftError(RuntimeError):
    """A drafted lane arrived on stage 0 for a position without a draft."""


class Verdict(IntEnum):
    """What the last stage says of one lane: was its draft the retired token?"""

    NONE = -1
    MISS = 0
    HIT = 1


STALE_INPUT = 0
"""Input token of a lane that is known to be stale: any valid token will do."""


class StaleBook:
    """Which requests wait for a re-entry, as the verdicts so far tell.

    Every stage before the last keeps one, so that it need not run a tick of stale lanes.
    """

    def __init__(self) -> None:
        self._known_end: dict[str, int] = {}
        self._missed: set[str] = set()

    def arrive(self, lane: Lane) -> None:
        """A lane has come: a known token is a re-entry, or needs none."""
        if not lane.drafted:
            self._known_end[lane.request_id] = lane.end
            self._missed.discard(lane.request_id)

    def judge(self, lane: Lane, verdict: Verdict) -> None:
        """Take in the verdict on the draft behind ``lane``.

        The scheduler may have heard of a miss first: once the true token of the
        missed position has entered, the verdict says nothing new. A request that
        has left is ignored.
        """
        known_end = self._known_end.get(lane.request_id)
        if verdict == Verdict.MISS and known_end is not None and lane.end >= known_end:
            self._missed.add(lane.request_id)

    def is_stale(self, lane: Lane) -> bool:
        """Whether a lane is known to be stale by the verdicts so far."""
        return lane.drafted and lane.request_id in self._missed

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._known_end.pop(request_id, None)
        self._missed.discard(request_id)

    def __len__(self) -> int:
        return len(self._known_end)


class DraftBook(StaleBook):
    """Stage 0's: the newest draft of every request as well."""

    def __init__(self) -> None:
        super().__init__()
        self._drafts: dict[str, tuple[int, int]] = {}

    def propose(self, request_id: str, position: int, token: int) -> None:
        """Record ``token`` as the draft for ``position`` of a request."""
        self._drafts[request_id] = (position, token)

    def enter(self, lane: Lane) -> int | None:
        """Return the input token of a lane, or None if the scheduler knows it.

        Raises:
            MissingDraftError: the lane is drafted, not stale, and the newest draft
                is for another position: scheduler and proposer disagree.
        """
        self.arrive(lane)
        if not lane.drafted:
            return None
        if self.is_stale(lane):
            return STALE_INPUT
        drafted = self._drafts.get(lane.request_id)
        if drafted is None or drafted[0] != lane.position:
            raise MissingDraftError(
                f"no draft for position {lane.position} of request {lane.request_id!r}; "
                f"the newest is {drafted}. The scheduler sent a position whose token it "
                "does not know, and stage 0 drafted none."
            )
        return drafted[1]

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._drafts.pop(request_id, None)


class TickGate:
    """Which ticks may start on a stage before the last, and which it need not run.

    Args:
        depth: drafts of a request that may be unverified when a tick starts that
            embeds one more.
        book: the stage's, which the verdicts go to.
    """

    def __init__(self, depth: int, book: StaleBook) -> None:
        self._depth, self._book = depth, book
        self._unjudged: deque[tuple[tuple[Lane, ...], set[str]]] = deque()

    @property
    def unjudged(self) -> int:
        """How many ticks have started whose verdicts are not in."""
        return len(self._unjudged)

    def due(self, lanes: Sequence[Lane]) -> int:
        """Return how many verdicts must come in before a tick of these lanes may start.

        Known tokens wait for nothing, and ticks of which nothing counts are not waited
        for: after a miss the true token enters at once.
        """
        if not any(lane.drafted and not self._book.is_stale(lane) for lane in lanes):
            return 0
        unverified = sum(bool(alive) for _, alive in self._unjudged)
        verdicts = 0
        for _, alive in self._unjudged:
            if unverified <= self._depth:
                break
            unverified -= bool(alive)
            verdicts += 1
        return verdicts

    def judge(self, verdicts: Sequence[int]) -> None:
        """Take in the verdicts on the oldest unjudged tick, in row order."""
        lanes, _ = self._unjudged.popleft()
        for lane, verdict in zip(lanes, verdicts, strict=True):
            self._book.judge(lane, Verdict(verdict))

    def start(self, lanes: Sequence[Lane]) -> bool:
        """A tick with these lanes, in row order, starts; return False to skip it.

        What is in flight of a request when a known token of it enters is judged already,
        as far as it counts.
        """
        for lane in lanes:
            if not lane.drafted:
                for _, alive in self._unjudged:
                    alive.discard(lane.request_id)
        alive = {lane.request_id for lane in lanes if not self._book.is_stale(lane)}
        self._unjudged.append((tuple(lanes), alive))
        return bool(alive)
