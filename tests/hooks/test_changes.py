"""What a replacement does, with a stand-in for what vLLM's function does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import vllm.v1.executor.multiproc_executor as executor

from vllm_ppsd.hooks import changes


class PPSD:
    method = "ppsd"
    is_pipelined = True


class Queue:
    """Takes the place of vLLM's, which takes shared memory."""

    def __init__(
        self, readers: int, max_chunk_bytes: int = 1000, max_chunks: int = changes.VLLM_CHUNKS
    ):
        self.readers, self.max_chunk_bytes, self.max_chunks = readers, max_chunk_bytes, max_chunks


@pytest.mark.parametrize(
    ("speculation", "steps", "chunks"),
    [(PPSD(), 3, 10), (PPSD(), 9, 20), (None, 9, 10)],
)
def test_the_queue_to_the_workers_holds_the_steps_in_flight(
    monkeypatch, speculation, steps: int, chunks: int
):
    monkeypatch.setattr(executor, "MessageQueue", Queue)
    made = []

    def stock(self) -> None:
        made.append(executor.MessageQueue(steps, max_chunk_bytes=1000))

    config = SimpleNamespace(speculative_config=speculation, max_concurrent_batches=steps)
    changes.queue_room(stock)(SimpleNamespace(vllm_config=config))
    (queue,) = made
    assert (queue.readers, queue.max_chunks) == (steps, chunks)
    assert queue.max_chunk_bytes * queue.max_chunks <= 1000 * changes.VLLM_CHUNKS
    assert executor.MessageQueue is Queue


def test_a_worker_that_is_forked_meanwhile_makes_its_own_queue_as_vllm_does(monkeypatch):
    monkeypatch.setattr(executor, "MessageQueue", Queue)
    made = []
    config = SimpleNamespace(speculative_config=PPSD(), max_concurrent_batches=9)
    stock = changes.queue_room(lambda self: made.append(executor.MessageQueue(1)))
    stock(SimpleNamespace(vllm_config=config))
    (queue,) = made
    assert (queue.max_chunk_bytes, queue.max_chunks) == (1000, changes.VLLM_CHUNKS)


class WorkerProc:
    """vLLM's, as far as the hook goes: only the awaited worker replies."""

    def __init__(self, rank: int, **worker: Any) -> None:
        self.rank, self.worker, self.replies = rank, SimpleNamespace(**worker), []

    def handle_output(self, output: Any) -> None:
        self.replies.append(output)

    def _execute_worker_rpc(self, rpc_request: Any) -> None:
        method, args, kwargs, output_rank = rpc_request
        try:
            output = method(*args, **kwargs)
            if output_rank is None or self.rank == output_rank:
                self.handle_output(output)
        except Exception as error:
            if output_rank is None or self.rank == output_rank:
                self.handle_output(error)


def double(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@pytest.mark.parametrize(
    ("rank", "awaited", "expected"),
    [(1, 1, ["2", "negative", "6"]), (0, 1, ["negative"]), (0, None, ["2", "negative", "6"])],
)
def test_a_worker_that_is_not_awaited_replies_with_its_failures(rank: int, awaited, expected):
    worker = WorkerProc(rank, ppsd_config=PPSD())
    call = changes.every_failure(WorkerProc._execute_worker_rpc)
    for number in (1, -1, 3):
        call(worker, (double, (number,), {}, awaited))
    assert [str(reply) for reply in worker.replies] == expected
    assert "handle_output" not in vars(worker)


def test_a_worker_without_ppsd_replies_as_before():
    worker = WorkerProc(0)
    changes.every_failure(WorkerProc._execute_worker_rpc)(worker, (double, (-1,), {}, 1))
    assert worker.replies == []


@pytest.mark.parametrize(("speculation", "queues"), [(PPSD(), 3), (None, 3), (PPSD(), 0)])
def test_the_engine_hears_of_failures(speculation, queues: int):
    config = SimpleNamespace(speculative_config=speculation)
    stock = [SimpleNamespace() for _ in range(queues)]
    multiproc = SimpleNamespace(vllm_config=config, response_mqs=stock, _get_output_rank=lambda: 1)
    changes.hear_failures(lambda self: None)(multiproc)
    if speculation is None or not queues:
        assert multiproc.response_mqs is stock
        return
    watched = [queue._others for queue in multiproc.response_mqs]
    assert watched == [(), [multiproc.response_mqs[0], multiproc.response_mqs[2]], ()]


@pytest.mark.parametrize(("speculation", "follows"), [(PPSD(), True), (None, False)])
def test_only_ppsds_engine_core_follows_its_server(monkeypatch, speculation, follows: bool):
    seen: list[Any] = []
    monkeypatch.setattr(changes, "follow_server", lambda grace: seen.append("follows"))
    config = SimpleNamespace(speculative_config=speculation)
    changes.engine_lifeline(lambda self, config: seen.append("stock"))(None, config)
    assert seen == ["follows", "stock"][not follows :]
