"""What a pipeline stage does besides plain decoding: the interface.

A stage object belongs to one model runner, which calls it at the points below, in this order, once
a tick (``vllm_ppsd.runner``); everything else is vLLM's plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from vllm.sequence import IntermediateTensors

from vllm_ppsd.drafter.interface import Drafter
from vllm_ppsd.protocol import Lane, PlaceBook, Tick, Verdict
from vllm_ppsd.runner.port import Batch, PipelinePort
from vllm_ppsd.worker.channels import StageChannels
from vllm_ppsd.worker.events import EventSink, What
from vllm_ppsd.worker.feedback import FeedbackSender
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.part_times import PartWatch


class Stage:
    """What every stage does. First, middle and last stage subclass it.

    Args:
        port: to the model runner that this stage belongs to.
        channels: this stage's.

    Attributes:
        drafter: proposes tokens on stage 0; None on the others, and where nothing is drafted.
        events: takes in what the stage does.
        samples: whether it is the last stage.
        sends: handles of the previous tick's sends to the next stage.
    """

    drafter: Drafter | None = None
    samples = False

    def __init__(self, port: PipelinePort, channels: StageChannels) -> None:
        self._port = port
        back = channels.senders.get(Kind.FEEDBACK)
        self._feedback_sender = FeedbackSender(back, channels.stage, port.device) if back else None
        self.events = EventSink()
        self.sends: list[Any] = []
        self._places = PlaceBook()
        self._stage = channels.stage
        self._watch = PartWatch(port.device)

    def load(self) -> None:
        """Load what the stage needs besides the target's own layers."""

    def warm_up(self, num_tokens: int) -> None:
        """Compile, and use the memory of, what the stage runs behind its layers."""

    def enter(self, tick: Tick) -> Tick:
        """A tick has come; return it with its lanes where they stand."""
        return self._places.enter(tick)

    def begin(self, tick: Tick) -> bool:
        """A tick has entered; return False if it need not be prepared at all."""
        self._watch.begin()
        if tick.lanes:
            self.events.tick(tick)
        return True

    def inputs(self, tick: Tick) -> Mapping[str, Sequence[int]] | None:
        """Return the drafted tokens of each request's lane.

        None on the last stage, which has sampled them itself.
        """
        return None

    def entering(self, tick: Tick, rows: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """Return what the tick's roots carry behind their known tokens, by request.

        Called when the tick's blocks are known, before its inputs are laid out.

        Args:
            tick: the tick.
            rows: its requests, in the order of the runner's rows.
        """
        return {}

    def discards(self, lane: Lane) -> bool:
        """Whether what is sampled for a lane must leave no trace."""
        return False

    def run(self, batch: Batch, layers: Callable[[], Any]) -> Any:
        """Run the stage's layers; return what they make, None if they need not run."""
        raise NotImplementedError

    def after_execute(self) -> None:
        """Called when vLLM is done with a tick's layers, on the last stage with its logits."""

    def after_send(self, batch: Batch, states: Any) -> None:
        """Called when what ``run`` returned is on its way to the next stage."""

    def sampling(self, batch: Batch | None) -> AbstractContextManager[None]:
        """Return a context in which the last stage samples; None if no lane counts."""
        return self.events.span(What.SAMPLE)

    def judge(self, tick: Tick, sampled: Mapping[str, Sequence[int]]) -> Verdict:
        """Judge what the last stage has sampled, by request; no tokens where nothing counts."""
        raise NotImplementedError

    def _run_layers(self, batch: Batch, layers: Callable[[], Any]) -> Any:
        with self.events.span(What.LAYERS), self._watch.layers():
            output = layers()
        self._send_back(batch.tick, batch.last, output)
        return output

    def _send_back(self, tick: Tick, last: torch.Tensor | None, output: Any) -> None:
        """Send what the head reads of a tick back to stage 0.

        Args:
            tick: the tick.
            last: where each lane's last token is.
            output: of the stage's layers; None if the tick was skipped.
        """
        if self._feedback_sender is None:
            return
        with self.events.span(What.SEND_BACK):
            states = None
            if isinstance(output, torch.Tensor):
                states = output[last]
            elif output is not None:
                hidden, residual = handed_over(output)
                states = hidden[last] if residual is None else hidden[last] + residual[last]
            self._feedback_sender.send(tick.number, states)

    def finish_sends(self) -> None:
        """Wait until the next stage has what the previous tick sent.

        vLLM waits before it prepares the next tick's inputs; it is enough to wait
        before anything writes to the buffers that were sent.
        """
        for handle in self.sends:
            handle.wait()
        self.sends = []


def handed_over(states: IntermediateTensors) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what a stage hands over, each [tokens, hidden]: hidden states and residual.

    The residual is to be added; it is None for targets whose layers add it themselves.
    """
    return states.tensors["hidden_states"], states.tensors.get("residual")
