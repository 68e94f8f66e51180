"""A pipeline whose stage 0 reads states of later stages, as a multi-depth head does."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from protocol.early import FirstStage
from protocol.pipeline import Pipeline
from protocol.request import Settings
from protocol.stages import GARBAGE, LastStage, Passing, State

from vllm_ppsd.protocol import DiagonalBook, Lane, Outcome


class ReadingStage(FirstStage):
    """Waits for what lanes that may count read; takes in more as it comes."""

    def __init__(self, lags: Sequence[int], *args: Any) -> None:
        super().__init__(*args)
        self.diagonal: DiagonalBook[State] = DiagonalBook(lags)
        self.unsent: list[deque[Passing]] = [deque() for _ in lags]

    def start(self, passing: Passing, lanes: list[Lane]) -> None:
        for request_id in passing.tick.left:
            self.diagonal.forget(request_id)
        self.diagonal.enter(passing.tick.lanes)
        super().start(passing, lanes)
        for source, unsent in enumerate(self.unsent):
            unsent.append(passing)
            while self.diagonal.owed(source, passing.rows):
                self._send_back(source)
            while unsent and self.rng.random() < 0.7:
                self._send_back(source)
        for lane in passing.rows:
            passing.read[lane.request_id] = [
                self.diagonal.read(lane, source) for source in range(len(self.unsent))
            ]

    def _send_back(self, source: int) -> None:
        passing = self.unsent[source].popleft()
        if not passing.rows and self.rng.random() < 0.8:
            self.diagonal.arrive(source, passing.tick.number, None)
            return
        states = []
        for lane in passing.tick.lanes:
            ran = lane in passing.rows
            entry = passing.nodes[lane.request_id, lane.rank].path[-1] if ran else GARBAGE
            states.append((lane.end - 1, entry))
        self.diagonal.arrive(source, passing.tick.number, states)


class CheckingStage(LastStage):
    """What a lane that counts has read was made from retired tokens only."""

    def __init__(self, lags: Sequence[int], slots: int, rng: random.Random) -> None:
        super().__init__(slots, rng)
        self.lags = lags
        self.read = 0

    def _retire(self, passing: Passing, lane: Lane) -> Outcome:
        path = passing.nodes[lane.request_id, lane.rank].path
        for lag, state in zip(self.lags, passing.read[lane.request_id], strict=True):
            if state is not None:
                position = lane.position - lag
                assert state == (position, path[position]), "a state of another context"
                self.read += 1
        return super()._retire(passing, lane)


class FeedbackPipeline(Pipeline):
    def __init__(self, settings: Settings, rng: random.Random) -> None:
        super().__init__(settings, rng)
        early = (
            settings.slots,
            rng,
            settings.depth,
            settings.block_size,
            1,
            settings.acceptance,
            0.0,
        )
        self.first = ReadingStage(settings.lags, *early)
        self.early[0] = self.first
        self.last: CheckingStage = CheckingStage(settings.lags, settings.slots, rng)
