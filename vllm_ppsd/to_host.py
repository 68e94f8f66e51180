"""Values of the device on the host, without holding up the worker."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from vllm.logger import init_logger

logger = init_logger("vllm.plugins.ppsd")


class HostCopy:
    """A copy of a tensor on the host, which is there when the device has come to it.

    Args:
        tensor: of any device; on a CPU it is taken as it is, and nothing may write to it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        # torch pins the memory of such a copy.
        self._copy = tensor.to("cpu", non_blocking=True)
        self._values: list[Any] | None = None
        self._made: torch.cuda.Event | None = None
        if self._copy is not tensor:
            # The waiting thread sleeps instead of spinning.
            self._made = torch.cuda.Event(blocking=True)
            self._made.record()

    def tensor(self) -> torch.Tensor:
        """Return the copy; waits for the device."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy

    def values(self) -> list[Any]:
        """Return the copy as a list; waits for the device."""
        if self._values is None:
            self._values = self.tensor().tolist()
        return self._values


class DeviceWaiter:
    """Runs what waits for the device, in the order in which it is given.

    On a CPU there is nothing to wait for, and it is run at once; elsewhere by a thread.

    Args:
        device: that is waited for.
        fail: called when an action has raised: whoever waits for what was to come must learn that
            it will not. Nothing more is run.
    """

    def __init__(self, device: torch.device, fail: Callable[[], None]) -> None:
        self._fail = fail
        self._failure: Exception | None = None
        self._actions: SimpleQueue[Callable[[], None]] | None = None
        if device.type != "cpu":
            self._actions = SimpleQueue()
            # A worker that ends does not wait for its device here.
            Thread(target=self._work, name="ppsd-device-waiter", daemon=True).start()

    def run(self, action: Callable[[], None]) -> None:
        """Run something behind all that was given before.

        Raises:
            Exception: what an earlier action raised.
        """
        if self._failure is not None:
            raise self._failure
        if self._actions is None:
            action()
        else:
            self._actions.put(action)

    def _work(self) -> None:
        assert self._actions is not None
        while self._failure is None:
            action = self._actions.get()
            try:
                action()
            except Exception as error:
                logger.exception("PPSD: what waited for the device has failed")
                self._failure = error
                self._fail()
