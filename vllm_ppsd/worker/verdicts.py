"""Verdicts on their way from the last stage back to stage 0.

They go from worker to worker, not through the scheduler, so that stage 0 learns of
a hit or a miss as soon as the token is sampled. One message a tick, one int64 per
row, over the pipeline group's CPU backend (gloo), which every platform has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.protocol import Verdict


class VerdictSender:
    """The last stage's end. Sends never block; buffers live until they are done."""

    def __init__(self) -> None:
        group = get_pp_group()
        self._group: Any = group.cpu_group
        self._first_rank: int = group.first_rank
        self._pending: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, verdicts: Sequence[Verdict]) -> None:
        """Send the verdicts on one tick, in row order."""
        while self._pending and self._pending[0][0].is_completed():
            self._pending.popleft()
        message = torch.tensor(verdicts, dtype=torch.int64)
        work = torch.distributed.isend(message, self._first_rank, group=self._group)
        self._pending.append((work, message))


class VerdictReceiver:
    """Stage 0's end. A receive is posted when its tick starts."""

    def __init__(self) -> None:
        group = get_pp_group()
        self._group: Any = group.cpu_group
        self._last_rank: int = group.last_rank
        self._posted: deque[tuple[Any, torch.Tensor]] = deque()

    def expect(self, rows: int) -> None:
        """Post the receive for a tick of ``rows`` rows."""
        buffer = torch.empty(rows, dtype=torch.int64)
        work = torch.distributed.irecv(buffer, self._last_rank, group=self._group)
        self._posted.append((work, buffer))

    def wait(self) -> list[Verdict]:
        """Wait for the verdicts on the oldest expected tick."""
        work, buffer = self._posted.popleft()
        work.wait()
        return [Verdict(value) for value in buffer.tolist()]
