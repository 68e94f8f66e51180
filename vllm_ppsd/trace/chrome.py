"""A trace in the Trace Event Format that chrome://tracing and Perfetto open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_ppsd.trace.spans import BUSY, LaneResult, Span, Trace, What


def events(runs: Mapping[str, Trace]) -> dict[str, Any]:
    """Return the JSON object: a process per run, a thread per stage, µs from its first span."""
    result: list[dict[str, Any]] = []
    for process, (name, trace) in enumerate(runs.items()):
        result.append(_named("process_name", name, process))
        origin = trace.spans[0].start
        for stage in range(trace.stages):
            result.append(_named("thread_name", f"stage {stage}", process, stage))
        for span in trace.spans:
            result.append(_slice(trace, span, process, origin))
            if span.what == What.SAMPLE:
                result += _flushes(trace, span, process, origin)
        for stage, start, end in trace.gaps():
            idle = Span(stage, What.HOLD, start, end, -1)
            result.append(_place("idle", "idle", idle, process, origin))
    return {"traceEvents": result, "displayTimeUnit": "ms"}


def _slice(trace: Trace, span: Span, process: int, origin: float) -> dict[str, Any]:
    lanes = trace.ticks[span.tick]
    stale = trace.stale_share(span.tick) == 1
    category = "hold" if span.what not in BUSY else "stale" if stale else "verified"
    return _place(span.what.value, category, span, process, origin) | {
        "args": {
            "tick": span.tick,
            "lanes": [
                {
                    "request": lane.request,
                    "position": lane.position,
                    "tokens": lane.length,
                    "outcome": lane.outcome,
                }
                for lane in lanes
            ],
        }
    }


def _flushes(trace: Trace, span: Span, process: int, origin: float) -> list[dict[str, Any]]:
    """One instant for every request that is flushed when this tick is sampled."""
    return [
        {
            "name": f"flush {lane.request}",
            "ph": "i",
            "s": "p",
            "ts": 1000 * (span.end - origin),
            "pid": process,
            "tid": span.stage,
        }
        for lane in trace.ticks[span.tick]
        if lane.outcome == LaneResult.MISS
    ]


def _place(name: str, category: str, span: Span, process: int, origin: float) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": 1000 * (span.start - origin),
        "dur": 1000 * span.duration,
        "pid": process,
        "tid": span.stage,
    }


def _named(kind: str, name: str, process: int, thread: int = 0) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
