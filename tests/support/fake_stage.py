"""A stage as model runners call it."""

from __future__ import annotations

from collections.abc import Set
from contextlib import contextmanager
from typing import Any

from vllm_ppsd.protocol import Lane, Tick, Verdict


class FakeStage:
    """Remembers what it is called with.

    Args:
        samples: whether it is the last one.
        stale: requests whose lanes are.
    """

    def __init__(self, samples: bool = False, stale: Set[str] = frozenset()) -> None:
        self.samples, self.stale, self.calls = samples, stale, []

    def enter(self, tick: Tick) -> Tick:
        return tick

    def begin(self, tick: Tick) -> bool:
        return not tick.lanes or len(self.stale) < len(tick.lanes)

    def inputs(self, tick: Tick) -> Any:
        return None if self.samples else {lane.request_id: [lane.position] for lane in tick.lanes}

    def entering(self, tick: Tick, rows: Any) -> Any:
        self.calls.append(list(rows))
        return {lane.request_id: [20] * lane.drafted for lane in tick.reentries}

    def discards(self, lane: Lane) -> bool:
        return lane.request_id in self.stale

    def finish_sends(self) -> None:
        self.calls.append("sends are done")

    def run(self, batch: Any, layers: Any) -> Any:
        self.calls.append(batch)
        return None if self.stale and not self.samples else layers()

    def after_execute(self) -> None:
        self.calls.append("executed")

    def after_send(self, batch: Any, states: Any) -> None:
        self.calls.append(("sent", states))

    @contextmanager
    def sampling(self, batch: Any) -> Any:
        self.calls.append("sampling")
        yield

    def judge(self, tick: Tick, sampled: Any) -> Verdict:
        self.calls.append(dict(sampled))
        return Verdict(tick.number)
