"""Workers' replies to the engine: the failure of one ends the wait for another."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from vllm.v1.executor.multiproc_executor import WorkerProc

CHECK_SECONDS = 0.5
"""How often the engine looks for failures while it waits for a reply."""


class Replies:
    """Takes the place of the queue of a worker's replies in vLLM's executor.

    A step is answered by one worker of the last stage. It may wait for ever for a stage
    that has failed; that stage's own queue has the failure.

    Args:
        queue: vLLM's, of one worker.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._others: Sequence[Replies] = ()
        self._early: deque[Any] = deque()
        self._is_shut_down = False

    def watch(self, others: Sequence[Replies]) -> None:
        """Let ``dequeue`` return a failure of any of these workers, too."""
        self._others = others

    def dequeue(self, timeout: float | None = None) -> Any:
        """Return the next reply: a status, and a result or what went wrong.

        Args:
            timeout: in seconds; None to wait for ever.

        Raises:
            TimeoutError: there was none.
            RuntimeError: the executor was shut down.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._early:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._queue.dequeue(timeout=min(left, CHECK_SECONDS))
            except TimeoutError:
                for other in self._others:
                    if failure := other._failure():
                        return failure
                if left <= CHECK_SECONDS:
                    raise
            if self._is_shut_down:
                raise RuntimeError("the workers were shut down")
        return self._early.popleft()

    def shutdown(self) -> None:
        """End all waiting."""
        self._is_shut_down = True
        self._queue.shutdown()

    def _failure(self) -> Any | None:
        """Return a failure that is there; other replies are kept for ``dequeue``."""
        while True:
            try:
                reply = self._queue.dequeue(timeout=0)
            except TimeoutError:
                return None
            if reply[0] is not WorkerProc.ResponseStatus.SUCCESS:
                return reply
            self._early.append(reply)
