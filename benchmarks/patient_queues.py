"""Queues that are waited for asleep: a vLLM plugin for emulated pipelines.

A reader of vLLM's shared-memory queues spins for a second before it sleeps. On stages that
own their cores that costs nothing; nine processes on two cores spin away the time of those
that have work. Here every reader sleeps until it is notified, in both engines alike.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "ppsd-patient-queues"
NAP_MS = 4
"""Longest sleep: vLLM's notifications may be lost, which it makes up for after seconds."""


def register() -> None:
    """Let readers in this process sleep at once; vLLM calls it in every process."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    spinning = SpinCondition.wait
    if hasattr(spinning, "__wrapped__"):
        return

    @functools.wraps(spinning)
    def patient(self: Any, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = 0
        spinning(self, NAP_MS if timeout_ms is None else min(timeout_ms, NAP_MS))

    SpinCondition.wait = patient


@contextmanager
def everywhere() -> Iterator[None]:
    """Make this module a plugin of every vLLM started meanwhile, by an entry point on the path."""
    with tempfile.TemporaryDirectory() as folder:
        distribution = Path(folder) / f"{NAME.replace('-', '_')}-0.dist-info"
        distribution.mkdir()
        (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
        (distribution / "entry_points.txt").write_text(
            f"[vllm.general_plugins]\n{NAME} = {__name__}:register\n"
        )
        # Processes that are started anew take over this one's path.
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
