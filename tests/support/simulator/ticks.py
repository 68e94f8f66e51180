"""What travels through the simulated pipeline, and what its parts remember."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vllm_ppsd.protocol import Flight, Lane, StaleBook, TickGate, Verdict


@dataclass
class Tick:
    """A step on its way."""

    number: int
    lanes: list[Lane]
    drafts: dict[str, int] = field(default_factory=dict)
    drafts_arrive: float = 0.0
    waits: bool = False


class Ear:
    """What a stage before the last hears of verdicts."""

    def __init__(self, book: StaleBook, depth: int) -> None:
        self.book, self.gate = book, TickGate(depth, book)
        self.verdicts: deque[list[Verdict]] = deque()
        self.held_since = math.inf

    def holds(self, tick: Tick) -> bool:
        """Whether a tick must wait for a verdict."""
        return self.gate.due(tick.lanes) > len(self.verdicts)

    def catch_up(self) -> None:
        """Take in every verdict that is there."""
        while self.gate.unjudged and self.verdicts:
            self.gate.judge(self.verdicts.popleft())


@dataclass
class Request:
    """The scheduler's view of a request."""

    flight: Flight = field(default_factory=lambda: Flight(0, 0, 0))
    retired: int = 0
