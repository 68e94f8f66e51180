"""The scheduler makes the ticks: it numbers them and decides the levels of every request.

It knows neither the tokens nor the parents of the lanes it sends: only how many levels of a
request are in flight, how many lanes each has, and the outcomes that are in.

A level's shape is decided one tick before the level, because stage 0 drafts it then. Its width is
bounded by the slots (see ``slots``): a level of w lanes takes at most w - 1 more of them than the
levels before, and they are free again in the tick that carries the level's outcome to the stages.
So one plus the sum of w - 1 over the levels whose outcome is not in never exceeds the slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from vllm_ppsd.protocol.tick import ONE_TOKEN, Lane, Outcome, Retired, Shape, Tick


class _Level(NamedTuple):
    """A level whose outcome is not in.

    Attributes:
        tick: its number.
        width: how many lanes it has.
        state: whether stage 0 gets its final state if no lane goes on behind it.
    """

    tick: int
    width: int
    state: bool


@dataclass(slots=True)
class _Sent:
    """What the scheduler has sent of a request.

    Attributes:
        newest: number of the newest tick with a level of it.
        shape: of the level behind that one.
        levels: those whose outcome is not in.
        retired: the newest outcome, until a tick carries it to the stages.
        promoted: positions whose final entries are in the main blocks, on every stage behind
            that newest tick.
        reentry: number of the tick whose final state stage 0 drafts from behind a root that
            enters now; None if there is none.
    """

    newest: int
    shape: Shape = field(default_factory=Shape)
    levels: deque[_Level] = field(default_factory=deque)
    retired: Retired | None = None
    promoted: int = 0
    reentry: int | None = None


class TickBook:
    """The scheduler's.

    Args:
        slots: how many a request has on every stage; with one, the main blocks, no level has
            siblings.
    """

    def __init__(self, slots: int = 1) -> None:
        self._slots = slots
        self._number = 0
        self._sent: dict[str, _Sent] = {}

    def lane(
        self, request_id: str, position: int, length: int, known: int, samples: int, rank: int = 0
    ) -> Lane:
        """Return a lane of the next tick.

        Args:
            request_id: the engine's id of the request.
            position: of the lane's first token.
            length: number of its tokens.
            known: how many of them, the first ones, the scheduler knows.
            samples: how many of its rows sample.
            rank: its place among its siblings.

        Raises:
            KeyError: no token is known, and no lane of the request was sent before.
        """
        behind = None if known else self._sent[request_id].newest
        drafted = length - known
        lane = Lane(request_id, self._number, position, length, drafted, samples, behind, rank)
        if known and drafted and self.may_burst(request_id):
            return msgspec.structs.replace(lane, after=self._sent[request_id].reentry)
        return lane

    def may_burst(self, request_id: str) -> bool:
        """Whether stage 0 can draft behind a root of the request that enters now."""
        sent = self._sent.get(request_id)
        return sent is not None and sent.reentry is not None

    def level(self, request_id: str, position: int) -> tuple[Lane, ...]:
        """Return the lanes that embed what stage 0 drafts behind a request's newest level.

        All of them belong into one tick: the last stage may continue with any.
        """
        length = self.shape(request_id).length
        return tuple(
            self.lane(request_id, position, length, 0, length, rank)
            for rank in range(self.shape(request_id).width)
        )

    def shape(self, request_id: str) -> Shape:
        """Return the shape of a request's next level, unless a root comes first."""
        return self._sent[request_id].shape

    def tick(
        self,
        lanes: Iterable[Lane],
        no_draft_req_ids: Iterable[str] = (),
        seeds: Mapping[str, int] | None = None,
        left: Iterable[str] = (),
        shapes: Mapping[str, Shape] | None = None,
        reentry_req_ids: Iterable[str] = (),
        depth: int | None = None,
        read: int = -1,
    ) -> Tick:
        """Return the next tick; arguments as its attributes.

        Args:
            shapes: as wanted, and short enough for the sequence's greatest length; where slots
                are short, the level is narrower.
        """
        left, lanes, reentry = tuple(left), tuple(lanes), frozenset(reentry_req_ids)
        for request_id in left:
            self._sent.pop(request_id, None)
        levels: dict[str, list[Lane]] = {}
        for lane in lanes:
            levels.setdefault(lane.request_id, []).append(lane)
        retired: dict[str, Retired] = {}
        decided: dict[str, Shape] = {}
        for request_id, level in levels.items():
            sent = self._send(level, request_id in reentry)
            if sent.retired is not None:
                retired[request_id], sent.retired = sent.retired, None
            sent.shape = self._bounded(sent, (shapes or {}).get(request_id, ONE_TOKEN))
            if sent.shape != ONE_TOKEN:
                decided[request_id] = sent.shape
        number, self._number = self._number, self._number + 1
        return Tick(
            number,
            lanes,
            frozenset(no_draft_req_ids),
            dict(seeds or {}),
            left,
            decided,
            retired,
            reentry,
            depth,
            read,
        )

    def judge(self, lane: Lane, outcome: Outcome) -> None:
        """Take in the outcome of the level that ``lane`` is of.

        It is ignored if the request was preempted after that level was sent. If no lane
        continues, all levels in flight are stale.
        """
        sent = self._sent.get(lane.request_id)
        if sent is None or not sent.levels or sent.levels[0].tick > lane.tick:
            return
        level = sent.levels[0]
        while sent.levels and sent.levels[0].tick <= lane.tick:
            level = sent.levels.popleft()
        if outcome.continues is None:
            sent.levels.clear()
            sent.reentry = level.tick if level.state else None
        if self._slots > 1:
            end = lane.end - lane.samples + len(outcome.tokens)
            sent.retired = Retired(lane.tick, outcome.rank, end, outcome.continues)

    def restart(self, request_id: str) -> None:
        """A request is preempted: it has no blocks, and a root enters next."""
        self._sent.pop(request_id, None)

    def unverified(self, request_id: str) -> int:
        """Return how many levels of a request are in flight that are not known to be stale."""
        sent = self._sent.get(request_id)
        return len(sent.levels) if sent else 0

    def cacheable(self, request_id: str, final: int) -> int:
        """Return up to where a request's main blocks may be hashed for the prefix cache.

        Args:
            request_id: the engine's id of the request.
            final: how many of its positions have final entries (``computed - unverified``), in
                whatever slot.
        """
        sent = self._sent.get(request_id)
        return min(final, sent.promoted) if sent and self._slots > 1 else final

    def __len__(self) -> int:
        return len(self._sent)

    def _send(self, level: list[Lane], state: bool) -> _Sent:
        lane = level[0]
        sent = self._sent.setdefault(lane.request_id, _Sent(lane.tick))
        sent.newest, sent.reentry = lane.tick, None
        if sent.retired is not None:
            sent.promoted = sent.retired.end
        if lane.is_root:
            sent.levels.clear()
            sent.promoted = lane.end - lane.drafted
        if lane.samples:
            sent.levels.append(_Level(lane.tick, len(level), state))
        return sent

    def _bounded(self, sent: _Sent, wanted: Shape) -> Shape:
        taken = sum(level.width - 1 for level in sent.levels)
        return Shape(max(1, min(wanted.width, self._slots - taken)), wanted.length)
