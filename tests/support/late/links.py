"""States from stage to stage, as NCCL sends them: each way on a stream of its own.

A send waits for what was launched before it, reads its buffers when the device comes to it, and
nothing that is launched later waits for it unless its handle says so.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import zmq

from support.late.device import DEVICE, Event, Stream
from support.late.shapes import garbage
from support.late.tensors import LateTensor, launch

PATIENCE_MS = 60_000


class Handle:
    """Lets the current stream wait for a send or a receive."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.wait()

    def is_completed(self) -> bool:
        return self._event.query()


class _Link:
    """One end of what goes from a stage to the next: forms by the host, values by the device."""

    def __init__(self, source: int, target: int, receives: bool) -> None:
        self.stream = Stream()
        self.forms, self.values = (
            _socket(f"{source}-{target}-{what}", receives) for what in ("forms", "values")
        )


@cache
def _link(source: int, target: int, receives: bool) -> _Link:
    return _Link(source, target, receives)


def _socket(name: str, receives: bool) -> Any:
    socket = zmq.Context.instance().socket(zmq.PULL if receives else zmq.PUSH)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    socket.setsockopt(zmq.LINGER, 0)
    address = f"ipc://@late-{os.environ['VLLM_DIST_IDENT']}-{name}"
    if receives:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket


class _Transfer:
    """Is over so many seconds after the device has come to it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._ends = seconds, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        self._ends = self._ends or now + self._seconds
        return now >= self._ends


def _nothing() -> None:
    pass


def isend_tensor_dict(group: Any, tensors: Mapping[str, torch.Tensor], **_: Any) -> list[Handle]:
    """Take the place of ``GroupCoordinator.isend_tensor_dict``."""
    here = group.rank_in_group
    link = _link(here, here + 1, receives=False)
    link.forms.send(pickle.dumps({key: (one.shape, one.dtype) for key, one in tensors.items()}))
    told = Handle(Event())

    def send(*values: torch.Tensor) -> None:
        link.values.send(pickle.dumps([value.contiguous().numpy().tobytes() for value in values]))

    link.stream.wait_stream(DEVICE.current)
    link.stream.launch(_nothing, ready=_Transfer(DEVICE.transfer))
    with DEVICE.using(link.stream):
        launch(send, *tensors.values())
    return [told, Handle(link.stream.record_event())]


def irecv_tensor_dict(group: Any, **_: Any) -> tuple[dict[str, torch.Tensor], list[Handle], Any]:
    """Take the place of ``GroupCoordinator.irecv_tensor_dict``."""
    here = group.rank_in_group
    link = _link(here - 1, here, receives=True)
    form = pickle.loads(link.forms.recv())
    memory = {key: garbage(torch.empty(shape, dtype=dtype)) for key, (shape, dtype) in form.items()}

    def receive() -> None:
        for into, data in zip(memory.values(), pickle.loads(link.values.recv()), strict=True):
            into.copy_(torch.frombuffer(bytearray(data), dtype=into.dtype).view(into.shape))

    link.stream.wait_stream(DEVICE.current)
    link.stream.launch(receive, ready=lambda: bool(link.values.poll(0)))
    tensors: dict[str, torch.Tensor] = {key: LateTensor(one) for key, one in memory.items()}
    return tensors, [Handle(link.stream.record_event())], []
