"""Messages between stages that do not pass the scheduler.

Drafts go from the first to the last stage, verdicts back to all before it, a message a tick. A
verdict is there as soon as the tokens are sampled, and final states for re-entry bursts come with
it; drafts may follow the hidden states that they were made from, which then wait for nothing. What
enters behind roots has a message of its own, before the tick's layers run. States that the head
reads besides its own go back to the first stage (``feedback``). Where vLLM's own hand-over of
states between neighbours is slow, they take the same way (``handover``). Middle stages tell the
last one what their passes took; nobody waits for that.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from vllm_ppsd.protocol import Drafts, StagePass, Verdict


class States(msgspec.Struct, frozen=True):
    """Hidden states for the next stage; the tensors follow as bytes, in this order.

    Attributes:
        tick: number of the tick.
        form: shape and dtype of each tensor, by name.
    """

    tick: int
    form: dict[str, tuple[list[int], str]]


class StatesBack(msgspec.Struct, frozen=True):
    """States of each lane's last position for stage 0; the tensor follows as bytes.

    Nothing follows if the stage skipped the tick.

    Attributes:
        tick: number of the tick.
        stage: number of the stage that sends them.
    """

    tick: int
    stage: int


class Kind(Enum):
    """What a channel carries; the value is the type of its messages."""

    STATES = States
    DRAFTS = Drafts
    VERDICTS = Verdict
    FEEDBACK = StatesBack
    PASSES = StagePass
