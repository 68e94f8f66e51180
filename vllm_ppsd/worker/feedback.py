"""Feedback: later stages send stage 0 the states that a multi-depth head reads.

A message a tick and stage: one row per lane, of the lane's last position, as soon as the
stage's layers are done, on the last stage before its LM head. A stage that skips a tick
sends an empty one, so that messages can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_ppsd.protocol import DiagonalBook, Lane
from vllm_ppsd.to_device import on_device
from vllm_ppsd.to_host import DeviceWaiter, HostCopy
from vllm_ppsd.worker.channels import Receiver, Sender, bytes_of
from vllm_ppsd.worker.messages import StatesBack


class FeedbackSender:
    """A later stage's end.

    Args:
        sender: to stage 0.
        stage: this stage's number.
        device: where the states are made.
    """

    def __init__(self, sender: Sender[StatesBack], stage: int, device: torch.device) -> None:
        self._sender, self._stage = sender, stage
        self._waiter = DeviceWaiter(device, sender.close)

    def send(self, tick: int, states: torch.Tensor | None) -> None:
        """Send a tick's states, [rows, hidden]; None if the tick was skipped."""
        copy = None if states is None else HostCopy(states.detach())

        def send() -> None:
            payload = [] if copy is None else [bytes_of(copy.tensor())]
            self._sender.send(StatesBack(tick, self._stage), payload)

        self._waiter.run(send)


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

    def gather(self, lanes: Sequence[Lane], tokens: Sequence[int], count: int) -> torch.Tensor:
        """Wait for what the head reads besides its exit states, and return it.

        Args:
            lanes: of the tick that count as far as is known, in row order.
            tokens: where each lane's last token is among the tick's.
            count: tokens of the tick.

        Returns:
            [count, stages, hidden]; zero where there is nothing to read.
        """
        for source in range(len(self._stages)):
            while self._book.owed(source, lanes):
                self._receive()
        read: dict[int, torch.Tensor] = {}
        for lane, token in zip(lanes, tokens, strict=True):
            for source in range(len(self._stages)):
                state = self._book.read(lane, source)
                if state is not None:
                    read[token * len(self._stages) + source] = state
        states = self.nothing(count)
        if read:
            rows = async_tensor_h2d(
                torch.stack(list(read.values())), device=self._device, dtype=self._dtype
            )
            states.flatten(0, 1).index_copy_(0, on_device(list(read), self._device), rows)
        return states

    def nothing(self, count: int) -> torch.Tensor:
        """Return what ``gather`` does where there is nothing to read."""
        shape = count, len(self._stages), self._hidden_size
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _receive(self) -> None:
        message, payload = self._receiver.receive_with_buffers()
        states: Sequence[torch.Tensor] | None = None
        if payload:
            flat = torch.frombuffer(bytearray(payload[0]), dtype=self._dtype)
            states = flat.view(-1, self._hidden_size).unbind()
        self._book.arrive(self._stages.index(message.stage), message.tick, states)
