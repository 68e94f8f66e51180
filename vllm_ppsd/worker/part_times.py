"""What the parts of a tick take a stage: measured where a call returns when its work is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_ppsd.protocol import PartTimes, StagePass, Tick


class PartWatch:
    """Times the parts of one tick after the other.

    Args:
        device: of the stage; only CPUs are timed, since calls to others return before the work
            is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._times = device.type == "cpu"
        self.begin()

    def begin(self) -> None:
        """A tick begins."""
        self._start = self._layers = self._first = self._continuation = 0.0

    @contextmanager
    def layers(self) -> Iterator[None]:
        """The decoder layers run within."""
        self._start = time.perf_counter()
        yield
        self.until_now()

    def until_now(self) -> None:
        """What came since the layers began, or since ``go_on``, is of the pass, too."""
        if self._start:
            self._layers = time.perf_counter() - self._start

    def go_on(self) -> None:
        """The pass goes on now; what lies between was waiting."""
        if self._start:
            self._start = time.perf_counter() - self._layers

    @contextmanager
    def drafting(self, length: int) -> Iterator[None]:
        """So many steps run within, the first behind exit states; they take about the same."""
        start = time.perf_counter()
        yield
        if length:
            self._first = (time.perf_counter() - start) / length
        if length > 1:
            self._continuation = self._first

    @contextmanager
    def going_on(self, length: int) -> Iterator[None]:
        """So many continuations run within."""
        start = time.perf_counter()
        yield
        self._continuation = (time.perf_counter() - start) / length

    def result(self, tick: Tick) -> PartTimes | None:
        """Return what the tick took, if it carried nothing of a prompt.

        What the head took is told of one request alone.
        """
        if not self._measures(tick):
            return None
        if len(tick.lanes) > 1:
            return PartTimes(self._layers)
        return PartTimes(self._layers, self._first, self._continuation)

    def passed(self, tick: Tick, stage: int) -> StagePass | None:
        """Return what the tick took a stage behind stage 0, if it carried nothing of a prompt."""
        if not self._measures(tick):
            return None
        return StagePass(stage, tick.rows, tick.runs_alone(stage), self._layers)

    def _measures(self, tick: Tick) -> bool:
        return self._times and self._layers > 0 and tick.is_timed
