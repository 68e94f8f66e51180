"""Before the last stage: what a lane embeds, when a tick may start, which lanes need not run.

Stage 0 drafts behind every lane. If the scheduler sends a request on before it knows the true
token, stage 0 embeds its own draft; if it sends a known token, the draft is forgotten.

The scheduler sends one tick more than may be unverified, so that stage 0 never waits for the
scheduler's answer. Stage 0 holds that tick until the last stage's judgement of the tick
``depth`` before it is in; a judgement that comes earlier is taken in as soon as stage 0 looks.
A miss makes every drafted lane of the request stale until a root enters. The stages in the middle
receive the judgements, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from vllm_ppsd.protocol.tick import Candidate, Drafts, Judgement, Lane, Outcome, Tick


class MissingDraftError(RuntimeError):
    """A drafted lane arrived on stage 0 for a position without a draft."""


class OrderError(RuntimeError):
    """A message is not of the tick that is due."""


STALE_INPUT = 0
"""Input token of a lane that is known to be stale: any valid token will do."""


class StaleBook:
    """Which requests wait for a root, as the judgements so far tell.

    Every stage before the last keeps one, so that it need not run a tick of stale lanes.
    """

    def __init__(self) -> None:
        self._roots: dict[str, int] = {}
        self._missed: set[str] = set()

    def arrive(self, lane: Lane) -> None:
        """A lane has come; a root needs nothing of what was in flight before it."""
        if lane.is_root:
            self._roots[lane.request_id] = lane.tick
            self._missed.discard(lane.request_id)

    def judge(self, tick: int, outcome: Outcome) -> None:
        """Take in the outcome of a tick.

        The scheduler may have heard of a miss first: once a root has entered, the outcome of
        an earlier tick says nothing new. A request that has left is ignored.
        """
        root = self._roots.get(outcome.request_id)
        if outcome.continues is None and root is not None and tick >= root:
            self._missed.add(outcome.request_id)

    def is_stale(self, lane: Lane) -> bool:
        """Whether a lane is known to be stale by the judgements so far."""
        return not lane.is_root and lane.request_id in self._missed

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._roots.pop(request_id, None)
        self._missed.discard(request_id)

    def __len__(self) -> int:
        return len(self._roots)


class DraftBook(StaleBook):
    """Stage 0's: the newest candidates of every request as well."""

    def __init__(self) -> None:
        super().__init__()
        self._drafted: dict[str, tuple[int, Sequence[Candidate]]] = {}

    def propose(self, drafts: Drafts) -> None:
        """Record what was drafted in a tick."""
        for request_id, candidates in drafts.candidates.items():
            self._drafted[request_id] = (drafts.tick, candidates)

    def inputs(self, lane: Lane) -> list[int]:
        """Return the drafted tokens of a lane that has arrived.

        Raises:
            MissingDraftError: the lane is not stale, and its tokens were not drafted:
                scheduler and proposer disagree.
        """
        if not lane.drafted:
            return []
        if self.is_stale(lane):
            return [STALE_INPUT] * lane.drafted
        tick, candidates = self._drafted.get(lane.request_id, (None, ()))
        if tick != lane.behind or lane.rank >= len(candidates):
            raise MissingDraftError(
                f"no draft for position {lane.position} of request {lane.request_id!r}: it goes "
                f"on from tick {lane.behind}, and stage 0 last drafted for it in tick {tick}"
            )
        return [draft.token for draft in candidates[lane.rank].drafts]

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._drafted.pop(request_id, None)


class TickGate:
    """Which ticks may start on a stage before the last, and which it need not run.

    Args:
        depth: ticks of a request that may be unverified when one starts that embeds drafts.
        book: the stage's, which the outcomes go to.
    """

    def __init__(self, depth: int, book: StaleBook) -> None:
        self._depth, self._book = depth, book
        self._unjudged: deque[tuple[int, set[str]]] = deque()

    @property
    def unjudged(self) -> int:
        """How many ticks have started whose judgements are not in."""
        return len(self._unjudged)

    def due(self, tick: Tick) -> int:
        """Return how many judgements must come in before a tick may start.

        Known tokens wait for nothing, and ticks of which nothing counts are not waited
        for: after a miss the true token enters at once.
        """
        if not any(not lane.is_root and not self._book.is_stale(lane) for lane in tick.lanes):
            return 0
        unverified = sum(bool(alive) for _, alive in self._unjudged)
        judgements = 0
        for _, alive in self._unjudged:
            if unverified <= self._depth:
                break
            unverified -= bool(alive)
            judgements += 1
        return judgements

    def judge(self, judgement: Judgement) -> None:
        """Take in the judgement of the oldest unjudged tick.

        Raises:
            OrderError: it is of another tick.
        """
        tick, _ = self._unjudged.popleft()
        if judgement.tick != tick:
            raise OrderError(f"a judgement of tick {judgement.tick} came where {tick}'s was due")
        for outcome in judgement.outcomes.values():
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
