"""What travels through the simulated pipeline, and what its parts remember."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vllm_ppsd.protocol import Drafts, Flight, Lane, StaleBook, Tick, TickGate, Verdict


@dataclass
class Step:
    """A tick on its way."""

    tick: Tick
    drafts: Drafts
    drafts_arrive: float = 0.0
    waits: bool = False

    @property
    def number(self) -> int:
        return self.tick.number

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return self.tick.lanes


class Ear:
    """What a stage before the last has received of verdicts."""

    def __init__(self, book: StaleBook, depth: int) -> None:
        self.book, self.gate = book, TickGate(depth, book)
        self.verdicts: deque[Verdict] = deque()
        self.held_since = math.inf

    def holds(self, step: Step) -> bool:
        """Whether a tick must wait for a verdict."""
        return self.gate.due(step.tick) > len(self.verdicts)

    def catch_up(self) -> None:
        """Take in every verdict that is there."""
        while self.gate.unjudged and self.verdicts:
            self.gate.judge(self.verdicts.popleft())


@dataclass
class Request:
    """The scheduler's view of a request."""

    flight: Flight = field(default_factory=lambda: Flight(0, 0, 0))
    retired: int = 0
