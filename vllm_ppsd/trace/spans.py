"""A recorded run as plain data: what each stage did when, and what came of each lane.

Times are milliseconds of the machine's monotonic clock, which all processes of one
node share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel

from vllm_ppsd.worker.events import What

BUSY = (What.LAYERS, What.DRAFT, What.LM_HEAD, What.SAMPLE)
"""What counts as work; ``HOLD`` is stage 0 waiting for a verdict, ``STATES`` for what a
multi-depth head reads of later stages."""


class LaneResult(StrEnum):
    """What became of a lane."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    RETIRED = "retired"
    """A token was sampled behind which nothing was drafted."""
    PROMPT = "prompt"
    """A piece of a prompt that does not end it: nothing is sampled."""


class TracedLane(NamedTuple):
    """A lane of a tick.

    Attributes:
        request: the engine's id of the request.
        position: of its first token.
        length: number of its tokens.
        outcome: what became of it; only the last stage knows.
        known: how many of its tokens were no drafts.
        tokens: how many tokens it brought, if it brought any.
        compared: how many drafts were compared with them, if any was.
    """

    request: str
    position: int
    length: int
    outcome: LaneResult | None = None
    known: int = 1
    tokens: int = 1
    compared: int = 1


class Span(NamedTuple):
    """A stage was busy, or held, from ``start`` to ``end``, for tick number ``tick``."""

    stage: int
    what: What
    start: float
    end: float
    tick: int

    @property
    def duration(self) -> float:
        return self.end - self.start


class StageRecord(BaseModel):
    """What one stage recorded; travels from its worker as JSON.

    Attributes:
        stage: its number.
        spans: in the order in which they ended.
        ticks: lanes of every tick with lanes, in the order in which they came, which
            is the same on every stage; only the last stage knows outcomes.
    """

    stage: int
    spans: list[Span]
    ticks: list[list[TracedLane]]


class Share(NamedTuple):
    """How a stage spent a stretch of time; the three shares add up to 1."""

    verified: float
    stale: float
    idle: float


class Trace:
    """The records of all stages of one run.

    Args:
        records: one per stage; ticks must have begun on all stages alike.

    Raises:
        ValueError: stages saw different numbers of ticks.
    """

    def __init__(self, records: Iterable[StageRecord]) -> None:
        by_stage = sorted(records, key=lambda record: record.stage)
        if len({len(record.ticks) for record in by_stage}) != 1:
            raise ValueError(
                "the stages recorded different ticks: "
                + ", ".join(f"{len(r.ticks)} on stage {r.stage}" for r in by_stage)
                + "; a trace must begin and end while no request is running"
            )
        self.stages = len(by_stage)
        self.spans = sorted(
            (span for record in by_stage for span in record.spans), key=lambda span: span.start
        )
        self.ticks = by_stage[-1].ticks

    @property
    def decoding(self) -> list[int]:
        """Numbers of the ticks whose lanes carry one token each, but for drafts."""
        return [n for n, lanes in enumerate(self.ticks) if all(lane.known <= 1 for lane in lanes)]

    def window(self) -> tuple[float, float]:
        """Return begin and end (ms) of decoding: between the first and last retired token.

        Raises:
            ValueError: nothing was decoded.
        """
        wanted = set(self.decoding)
        ends = [
            span.end
            for span in self.spans
            if span.what == What.SAMPLE and span.tick in wanted and self.stale_share(span.tick) < 1
        ]
        if len(ends) < 2:
            raise ValueError("fewer than two decode ticks were recorded")
        return ends[0], ends[-1]

    def stale_share(self, tick: int) -> float:
        """Return the share of a tick's lanes that are stale."""
        lanes = self.ticks[tick]
        return sum(lane.outcome == LaneResult.STALE for lane in lanes) / len(lanes)

    def shares(self) -> list[Share]:
        """Return how every stage spent the time of decoding."""
        begin, end = self.window()
        shares = []
        for stage in range(self.stages):
            busy = stale = 0.0
            for span in self.spans:
                if span.stage != stage or span.what not in BUSY:
                    continue
                inside = max(0.0, min(span.end, end) - max(span.start, begin))
                busy += inside
                stale += inside * self.stale_share(span.tick)
            whole = end - begin
            shares.append(Share((busy - stale) / whole, stale / whole, 1 - busy / whole))
        return shares

    def ms_per_token(self) -> float:
        """Return the time of decoding per token that was retired in it."""
        begin, end = self.window()
        retired = [_retired(self.ticks[n]) for n in self.decoding]
        return (end - begin) / (sum(retired) - self._first_retired())

    def count(self, outcome: LaneResult) -> int:
        """Return how many lanes of decode ticks came to ``outcome``."""
        return sum(lane.outcome == outcome for n in self.decoding for lane in self.ticks[n])

    @property
    def acceptance(self) -> float | None:
        """The share of hits among the drafts of decode ticks; None if there were none."""
        judged = (LaneResult.HIT, LaneResult.MISS)
        lanes = [lane for n in self.decoding for lane in self.ticks[n] if lane.outcome in judged]
        compared = sum(lane.compared for lane in lanes)
        return 1 - self.count(LaneResult.MISS) / compared if lanes else None

    def lanes(self) -> Counter[tuple[bool, int]]:
        """Count the lanes of decode ticks by whether they begin with a known token, and drafts.

        That is what the burst policy's plans came to.
        """
        return Counter(
            (lane.known > 0, lane.length - lane.known)
            for n in self.decoding
            for lane in self.ticks[n]
        )

    def work(self, stage: int, what: What) -> list[Span]:
        """Return the spans in which ``stage`` did ``what`` in decode ticks.

        Of drafting, only ticks count in which a draft was made that was judged: behind
        the other lanes the head only writes key/value entries.
        """
        wanted = set(self.decoding)
        if what == What.DRAFT:
            judged = {LaneResult.HIT, LaneResult.MISS}
            wanted = {n for n in wanted if judged & {lane.outcome for lane in self.ticks[n]}}
        return [s for s in self.spans if (s.stage, s.what) == (stage, what) and s.tick in wanted]

    def overlap(self, span: Span) -> float:
        """Return for how many ms of a span other stages were busy, too."""
        overlap, seen_to = 0.0, span.start
        for other in self.spans:
            if other.stage == span.stage or other.what not in BUSY or other.end <= seen_to:
                continue
            if other.start >= span.end:
                break
            overlap += min(span.end, other.end) - max(seen_to, other.start)
            seen_to = min(span.end, other.end)
        return overlap

    def gaps(self) -> list[tuple[int, float, float]]:
        """Return (stage, start, end) of every stretch in which a stage did nothing."""
        begin, end = self.window()
        gaps = []
        for stage in range(self.stages):
            free_from = begin
            for span in self.spans:
                if span.stage != stage or span.what not in BUSY or span.end <= begin:
                    continue
                if span.start >= end:
                    break
                if span.start > free_from:
                    gaps.append((stage, free_from, span.start))
                free_from = max(free_from, span.end)
            if free_from < end:
                gaps.append((stage, free_from, end))
        return gaps

    def _first_retired(self) -> int:
        """Tokens of the tick whose end opens the window."""
        first = next(n for n in self.decoding if self.stale_share(n) < 1)
        return _retired(self.ticks[first])


RETIRING = (LaneResult.HIT, LaneResult.MISS, LaneResult.RETIRED)
"""Outcomes of lanes that bring tokens."""


def _retired(lanes: Sequence[TracedLane]) -> int:
    return sum(lane.tokens for lane in lanes if lane.outcome in RETIRING)
