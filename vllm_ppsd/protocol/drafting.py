"""The proposer's side: which draft a lane embeds on stage 0, and when it may start.

Stage 0 drafts one token per lane, for the position after the lane. If the
scheduler sends that position on before it knows the true token, stage 0 embeds
its own draft; if it sends a known token, the draft is forgotten.

The scheduler sends one tick more than may be unverified, so that stage 0 never
waits for the scheduler's answer. Stage 0 holds that tick until the last stage's
*verdict* on the tick ``depth`` before it is in; a verdict that comes earlier is taken
in as soon as stage 0 looks. A verdict of a miss makes every drafted lane of the request
stale until a known token re-enters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
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


class DraftBook:
    """The newest draft of every request, and which requests wait for a re-entry."""

    def __init__(self) -> None:
        self._drafts: dict[str, tuple[int, int]] = {}
        self._known_end: dict[str, int] = {}
        self._missed: set[str] = set()

    def propose(self, request_id: str, position: int, token: int) -> None:
        """Record ``token`` as the draft for ``position`` of a request."""
        self._drafts[request_id] = (position, token)

    def enter(self, lane: Lane) -> int | None:
        """Return the input token of a lane, or None if the scheduler knows it.

        Raises:
            MissingDraftError: the lane is drafted, not stale, and the newest draft
                is for another position: scheduler and proposer disagree.
        """
        if not lane.drafted:
            self._known_end[lane.request_id] = lane.end
            self._missed.discard(lane.request_id)
            return None
        if lane.request_id in self._missed:
            return STALE_INPUT
        drafted = self._drafts.get(lane.request_id)
        if drafted is None or drafted[0] != lane.position:
            raise MissingDraftError(
                f"no draft for position {lane.position} of request {lane.request_id!r}; "
                f"the newest is {drafted}. The scheduler sent a position whose token it "
                "does not know, and stage 0 drafted none."
            )
        return drafted[1]

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
        self._drafts.pop(request_id, None)
        self._known_end.pop(request_id, None)
        self._missed.discard(request_id)

    def __len__(self) -> int:
        return len(self._known_end)


class TickGate:
    """Holds a tick on stage 0 until the ticks ``depth`` before it are judged.

    Args:
        depth: ticks that may be unverified when a tick starts; the number of
            drafts that may be in flight.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._unjudged: deque[tuple[Lane, ...]] = deque()

    def due(self) -> int:
        """Return how many verdicts must come in before the next tick may start."""
        return max(0, len(self._unjudged) - self._depth)

    @property
    def unjudged(self) -> int:
        """How many ticks have started whose verdicts are not in."""
        return len(self._unjudged)

    def start(self, lanes: Iterable[Lane]) -> None:
        """A tick with these lanes, in row order, has started."""
        self._unjudged.append(tuple(lanes))

    def judged(self) -> tuple[Lane, ...]:
        """Return the lanes of the oldest unjudged tick: its verdicts are in."""
        return self._unjudged.popleft()
