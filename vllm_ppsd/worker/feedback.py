"""Feedback: later stages send stage 0 the states that a multi-depth head reads.

A message a tick and stage: one row per lane, of the lane's last position, as soon as the
stage's layers are done, on the last stage before its LM head. A stage that skips a tick
sends an empty one, so that messages can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_ppsd.protocol import DiagonalBook, Lane
from vllm_ppsd.worker.channels import Receiver, Sender, bytes_of
from vllm_ppsd.worker.messages import StatesBack


class FeedbackSender:
    """A later stage's end.

    Args:
        sender: to stage 0.
        stage: this stage's number.
    """

    def __init__(self, sender: Sender[StatesBack], stage: int) -> None:
        self._sender, self._stage = sender, stage

    def send(self, tick: int, states: torch.Tensor | None) -> None:
        """Send a tick's states, [rows, hidden]; None if the tick was skipped."""
        payload = [] if states is None else [bytes_of(states.detach().cpu())]
        self._sender.send(StatesBack(tick, self._stage), payload)


class Feedback:
    """Stage 0's end.

    Args:
        receiver: from all later stages.
        stages: whose states the head reads, in its order.
        hidden_size: of a state.
        dtype: of the states.
        device: where the head wants them.
    """

    def __init__(
        self,
        receiver: Receiver[StatesBack],
        stages: Sequence[int],
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._receiver, self._stages = receiver, list(stages)
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self._book: DiagonalBook[torch.Tensor] = DiagonalBook(stages)

    def enter(self, lanes: Sequence[Lane]) -> None:
        """A tick with these lanes, in row order, starts."""
        self._book.enter(lanes)

    def forget(self, request_id: str) -> None:
        """A request has left."""
        self._book.forget(request_id)

    def gather(self, lanes: Sequence[Lane], tokens: torch.Tensor, count: int) -> torch.Tensor:
        """Wait for what the head reads besides its exit states, and return it.

        Args:
            lanes: of the tick that count as far as is known, in row order.
            tokens: int64 [lanes], where each lane's last token is.
            count: tokens of the tick.

        Returns:
            [count, stages, hidden]; zero where there is nothing to read.
        """
        for source in range(len(self._stages)):
            while self._book.owed(source, lanes):
                self._receive()
        states = self._zeros(count)
        for lane, token in zip(lanes, tokens.tolist(), strict=True):
            for source in range(len(self._stages)):
                state = self._book.read(lane, source)
                if state is not None:
                    states[token, source] = state
        return states.to(self._device)

    def nothing(self, count: int) -> torch.Tensor:
        """Return what ``gather`` does where there is nothing to read."""
        return self._zeros(count).to(self._device)

    def _zeros(self, count: int) -> torch.Tensor:
        return torch.zeros(count, len(self._stages), self._hidden_size, dtype=self._dtype)

    def _receive(self) -> None:
        message, payload = self._receiver.receive_with_buffers()
        states: Sequence[torch.Tensor] | None = None
        if payload:
            flat = torch.frombuffer(bytearray(payload[0]), dtype=self._dtype)
            states = flat.view(-1, self._hidden_size).unbind()
        self._book.arrive(self._stages.index(message.stage), message.tick, states)
