"""Hidden states between neighbours, over a channel instead of vLLM's own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vllm_ppsd.worker.channels import Receiver, StageChannels, bytes_of
from vllm_ppsd.worker.messages import Kind, States


class Handover:
    """Takes the place of a pipeline group's ``isend_tensor_dict`` and ``irecv_tensor_dict``.

    Args:
        channels: this stage's.

    Attributes:
        tick: number of the tick under way, which the worker sets.
    """

    def __init__(self, channels: StageChannels) -> None:
        self._sender = channels.senders.get(Kind.STATES)
        self._receiver: Receiver[States] | None = channels.receivers.get(Kind.STATES)
        self.tick = -1

    def send(self, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
        """Send CPU tensors to the next stage; they may be changed at once.

        Returns:
            No handles: there is nothing to wait for.
        """
        assert self._sender is not None
        form = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        }
        self._sender.send(States(self.tick, form), [bytes_of(t) for t in tensors.values()])
        return []

    def receive(self) -> tuple[dict[str, torch.Tensor], list[Any], list[Callable[[], None]]]:
        """Return a dictionary, no handles, and what fills the dictionary when it is called."""
        tensors: dict[str, torch.Tensor] = {}
        tick = self.tick

        def fill() -> None:
            assert self._receiver is not None
            message, buffers = self._receiver.receive_with_buffers(tick)
            for (name, (shape, dtype)), data in zip(message.form.items(), buffers, strict=True):
                flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
                tensors[name] = flat.view(shape)

        return tensors, [], [fill]
