"""What stages tell whoever records them: work begun and ended, ticks, verdicts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Protocol

from vllm_ppsd.protocol import Tick, Verdict


class What(StrEnum):
    """What a stage is doing."""

    LAYERS = "layers"
    DRAFT = "draft"
    LM_HEAD = "LM head"
    SAMPLE = "sample"
    HOLD = "hold"
    STATES = "wait for states"
    SEND_BACK = "send states back"


class EventSink(Protocol):
    """Takes in what a stage does."""

    def tick(self, tick: Tick) -> None:
        """A tick with lanes begins."""

    def span(self, what: What) -> AbstractContextManager[None]:
        """Return a context that lasts as long as some work."""

    def since_last(self, what: What) -> None:
        """Some work has been done since the newest span ended."""

    def judged(self, verdict: Verdict) -> None:
        """The last stage has judged the newest tick."""


class NoEvents:
    """The sink of a stage that nobody records."""

    _nothing = nullcontext()

    def tick(self, tick: Tick) -> None:
        pass

    def span(self, what: What) -> AbstractContextManager[None]:
        return self._nothing

    def since_last(self, what: What) -> None:
        pass

    def judged(self, verdict: Verdict) -> None:
        pass
