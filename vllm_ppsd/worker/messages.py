"""What the first and the last stage tell each other: drafts there, verdicts back.

Both go from worker to worker, past the scheduler and the middle stages: one message
a tick each way, one int64 per row, over the pipeline group's CPU backend (gloo),
which every platform has. A verdict is there as soon as the token is sampled; a draft
may follow the hidden states that it was made from, which then wait for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
import torch.distributed
from vllm.distributed.parallel_state import get_pp_group


class Tag(IntEnum):
    """Keeps these messages apart from vLLM's own on the same group."""

    DRAFTS = 7301
    VERDICTS = 7302


class RowSender:
    """One end. Sends never block; buffers live until they are done.

    Args:
        tag: what is sent.
        rank: global rank of the receiver.
    """

    def __init__(self, tag: Tag, rank: int) -> None:
        self._tag, self._rank = tag, rank
        self._group: Any = get_pp_group().cpu_group
        self._pending: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, rows: Sequence[int]) -> None:
        """Send one tick's message, in row order."""
        while self._pending and self._pending[0][0].is_completed():
            self._pending.popleft()
        message = torch.tensor(rows, dtype=torch.int64)
        work = torch.distributed.isend(message, self._rank, group=self._group, tag=self._tag)
        self._pending.append((work, message))


class RowReceiver:
    """The other end. A receive is posted when its tick starts.

    Args:
        tag: what is received.
        rank: global rank of the sender.
    """

    def __init__(self, tag: Tag, rank: int) -> None:
        self._tag, self._rank = tag, rank
        self._group: Any = get_pp_group().cpu_group
        self._posted: deque[tuple[Any, torch.Tensor]] = deque()

    def expect(self, rows: int) -> None:
        """Post the receive for a tick of ``rows`` rows."""
        buffer = torch.empty(rows, dtype=torch.int64)
        work = torch.distributed.irecv(buffer, self._rank, group=self._group, tag=self._tag)
        self._posted.append((work, buffer))

    def wait(self) -> list[int]:
        """Wait for the message of the oldest expected tick."""
        work, buffer = self._posted.popleft()
        work.wait()
        values: list[int] = buffer.tolist()
        return values
