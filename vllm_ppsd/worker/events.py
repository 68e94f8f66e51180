"""Events that a stage emits to a sink: work, ticks, verdicts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum

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


class EventSink:
    """Takes in what a stage does; this one, of a stage that nobody records, forgets it."""

    _nothing = nullcontext()

    def tick(self, tick: Tick) -> None:
        """A tick with lanes begins."""

    def span(self, what: What) -> AbstractContextManager[None]:
        """Return a context that lasts as long as some work."""
        return self._nothing

    def since_last(self, what: What) -> None:
        """Some work has been done since the newest span ended."""

    def judged(self, verdict: Verdict) -> None:
        """The last stage has judged the newest tick."""
