"""Stages that slow each other: simulated work, whose pace changes with what runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Work:
    left: float
    since: float
    done: Callable[[float], None]
    start: float
    plan: int = 0


class Pace:
    """Runs one piece of work per stage; while others run, each takes ``contention`` times as long.

    Args:
        contention: times that work takes longer beside others.
        now: returns the simulated time, in ms.
        after: calls an action after a delay in ms.
    """

    def __init__(
        self,
        contention: float,
        now: Callable[[], float],
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._contention, self._now, self._after = contention, now, after
        self._running: dict[int, _Work] = {}
        self._slower = 1.0

    def run(self, stage: int, alone: float, done: Callable[[float], None]) -> None:
        """Begin work that takes ``alone`` ms on an idle machine.

        Args:
            stage: the stage that works; it must be idle.
            alone: ms.
            done: called at the end, with the time of the beginning.
        """
        self._running[stage] = _Work(alone, self._now(), done, self._now())
        self._plan()

    def _plan(self) -> None:
        """The set of stages that work has changed: plan anew when each will be done."""
        now = self._now()
        for work in self._running.values():
            work.left = max(0.0, work.left - (now - work.since) / self._slower)
            work.since = now
        self._slower = self._contention if len(self._running) > 1 else 1.0
        for stage, work in self._running.items():
            work.plan += 1
            self._after(work.left * self._slower, self._end(stage, work, work.plan))

    def _end(self, stage: int, work: _Work, plan: int) -> Callable[[], None]:
        def end() -> None:
            if work.plan == plan and self._running.get(stage) is work:
                del self._running[stage]
                work.done(work.start)
                self._plan()

        return end
