"""In a worker: takes in a stage's events, while a trace is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_ppsd.protocol import Lane, Outcome, Tick, Verdict
from vllm_ppsd.trace.spans import LaneResult, Span, StageRecord, TracedLane
from vllm_ppsd.worker.events import EventSink, What


class Recorder(EventSink):
    """The sink of a stage's events, while a trace is recorded.

    Args:
        number: the stage's place in the pipeline.
        synchronizes: whether to wait for an accelerator's work before each look at the clock.
    """

    def __init__(self, number: int, synchronizes: bool) -> None:
        self._number, self._synchronizes = number, synchronizes
        self._spans: list[Span] = []
        self._lanes: list[tuple[Lane, ...]] = []
        self._ticks: list[list[TracedLane]] = []

    def record(self) -> StageRecord:
        """Return what was recorded so far."""
        return StageRecord(stage=self._number, spans=self._spans, ticks=self._ticks)

    def tick(self, tick: Tick) -> None:
        self._lanes.append(tick.lanes)
        self._ticks.append(
            [
                TracedLane(
                    lane.request_id, lane.position, lane.length, known=lane.length - lane.drafted
                )
                for lane in tick.lanes
            ]
        )

    @contextmanager
    def span(self, what: What) -> Iterator[None]:
        start = self._now()
        yield
        self._add(what, start)

    def since_last(self, what: What) -> None:
        self._add(what, self._spans[-1].end)

    def judged(self, verdict: Verdict) -> None:
        self._ticks[-1] = [
            _judged(traced, lane, verdict.outcomes.get(lane.request_id))
            for traced, lane in zip(self._ticks[-1], self._lanes[-1], strict=True)
        ]

    def _add(self, what: What, start: float) -> None:
        self._spans.append(Span(self._number, what, start, self._now(), len(self._ticks) - 1))

    def _now(self) -> float:
        if self._synchronizes:
            torch.accelerator.synchronize()
        return time.monotonic_ns() / 1e6


def _judged(traced: TracedLane, lane: Lane, outcome: Outcome | None) -> TracedLane:
    result = lane_result(lane, outcome)
    if outcome is None or result == LaneResult.STALE:
        return traced._replace(outcome=result)
    return traced._replace(outcome=result, tokens=len(outcome.tokens), compared=outcome.compared)


def lane_result(lane: Lane, outcome: Outcome | None) -> LaneResult:
    """Return what became of a lane, by the last stage's outcome for its request."""
    if outcome is None or outcome.rank != lane.rank:
        return LaneResult.STALE if lane.samples else LaneResult.PROMPT
    if not outcome.compared:
        return LaneResult.RETIRED
    return LaneResult.MISS if outcome.missed else LaneResult.HIT
