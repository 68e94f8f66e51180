"""What a replacement does, with a stand-in for what vLLM's function does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import vllm.v1.executor.multiproc_executor as executor

from vllm_ppsd.hooks import changes


class PPSD:
    method = "ppsd"
    is_pipelined = True


class Queue:
    """Takes the place of vLLM's, which takes shared memory."""

    def __init__(self, readers: int, max_chunk_bytes: int, max_chunks: int = changes.VLLM_CHUNKS):
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
