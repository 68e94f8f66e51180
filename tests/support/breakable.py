"""Workers that fail where a test says."""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.parallel_state import get_pp_group

BREAKABLE = "support.breakable.BreakableWorker"
MESSAGE = "no such tensor"


class BreakableWorker:
    """Mixed into a PPSD worker by vLLM's ``worker_extension_cls``."""

    ppsd: Any

    def break_stage(self, stage: int) -> None:
        """From now on this stage raises where its layers would run."""
        if get_pp_group().rank_in_group == stage:
            self.ppsd.run = _raise

    def hang_stage(self, stage: int) -> None:
        """From now on this stage sleeps where its layers would run."""
        if get_pp_group().rank_in_group == stage:
            self.ppsd.run = _sleep


def _raise(*_: Any) -> None:
    raise KeyError(MESSAGE)


def _sleep(*_: Any) -> None:
    time.sleep(600)
