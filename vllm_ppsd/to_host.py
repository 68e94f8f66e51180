"""Values of the device on the host, without holding up the worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch


class HostCopy:
    """A copy of a tensor on the host, which is there when the device has come to it.

    Args:
        tensor: of any device; nothing writes to it afterwards.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        # torch pins the memory of such a copy.
        self._copy = tensor.to("cpu", non_blocking=True)
        self._made: torch.cuda.Event | None = None
        if self._copy is not tensor:
            # Who waits sleeps.
            self._made = torch.cuda.Event(blocking=True)
            self._made.record()

    @cached_property
    def tensor(self) -> torch.Tensor:
        """The copy; waits for the device."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy

    @cached_property
    def values(self) -> list[Any]:
        """The copy as a list; waits for the device."""
        values: list[Any] = self.tensor.tolist()
        return values


class DeviceWaiter:
    """Runs what waits for the device, in the order in which it is given.

    On a CPU there is nothing to wait for, and it is run at once; elsewhere by a thread.

    Args:
        device: that is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self._thread = ThreadPoolExecutor(1, "ppsd-device-waiter")
        self._pending: deque[Future[None]] = deque()

    def run(self, action: Callable[[], None]) -> None:
        """Run something behind all that was given before.

        Raises:
            Exception: what an earlier action raised.
        """
        if self._thread is None:
            action()
            return
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(action))
