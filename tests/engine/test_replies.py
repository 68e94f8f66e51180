"""The engine waits for one reply: a failure of another worker ends that, nothing else does."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest
from vllm.v1.executor.multiproc_executor import WorkerProc

from vllm_ppsd.engine import replies
from vllm_ppsd.engine.replies import Replies

SUCCESS = WorkerProc.ResponseStatus.SUCCESS
FAILURE = (WorkerProc.ResponseStatus.FAILURE, "stage 0: KeyError: 'residual'")


class Queue:
    """Takes the place of vLLM's queue of a worker's replies."""

    def __init__(self) -> None:
        self.replies: queue.Queue[Any] = queue.Queue()
        self.is_shut_down = False

    def dequeue(self, timeout: float) -> Any:
        try:
            return self.replies.get(timeout=timeout) if timeout else self.replies.get_nowait()
        except queue.Empty:
            raise TimeoutError from None

    def shutdown(self) -> None:
        self.is_shut_down = True


class Workers:
    """Three workers; the engine listens to the last."""

    def __init__(self) -> None:
        self.queues = [Queue() for _ in range(3)]
        self.replies = [Replies(queue) for queue in self.queues]
        self.replies[2].watch(self.replies[:2])

    def reply(self, worker: int, reply: Any) -> None:
        self.queues[worker].replies.put(reply)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(replies, "CHECK_SECONDS", 0.02)
    return Workers()


def test_a_reply_is_returned_as_soon_as_it_is_there(workers: Workers):
    threading.Timer(0.1, workers.reply, (2, (SUCCESS, 7))).start()
    assert workers.replies[2].dequeue(timeout=10) == (SUCCESS, 7)


@pytest.mark.parametrize("failed", [0, 1])
def test_a_failure_elsewhere_ends_the_wait(workers: Workers, failed: int):
    threading.Timer(0.1, workers.reply, (failed, FAILURE)).start()
    began = time.monotonic()
    assert workers.replies[2].dequeue(timeout=10) == FAILURE
    assert time.monotonic() - began < 5


def test_replies_of_others_to_another_call_are_kept_in_order(workers: Workers):
    for result in (1, 2):
        workers.reply(0, (SUCCESS, result))
    threading.Timer(0.1, workers.reply, (2, (SUCCESS, 7))).start()
    assert workers.replies[2].dequeue(timeout=10) == (SUCCESS, 7)
    workers.reply(0, (SUCCESS, 3))
    assert [workers.replies[0].dequeue(timeout=1)[1] for _ in range(3)] == [1, 2, 3]


def test_a_worker_that_is_called_with_others_fails_for_itself(workers: Workers):
    workers.reply(1, FAILURE)
    threading.Timer(0.1, workers.reply, (0, (SUCCESS, 1))).start()
    assert workers.replies[0].dequeue(timeout=10) == (SUCCESS, 1)
    assert workers.replies[1].dequeue(timeout=10) == FAILURE


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_silence_is_a_timeout(workers: Workers, timeout: float):
    with pytest.raises(TimeoutError):
        workers.replies[2].dequeue(timeout=timeout)


def test_shutting_down_ends_the_wait(workers: Workers):
    threading.Timer(0.1, workers.replies[2].shutdown).start()
    with pytest.raises(RuntimeError, match="shut down"):
        workers.replies[2].dequeue()
    assert workers.queues[2].is_shut_down
