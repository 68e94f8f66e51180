"""Burst plans that no policy would make."""

from __future__ import annotations

import random
from typing import Any

from vllm_ppsd.protocol import PLAIN, BurstPlan


class AnyPlan:
    """In place of a policy: another plan whenever one is asked for."""

    def __init__(self, depth: int) -> None:
        self._rng, self._depth = random.Random(0), depth

    def plan(self, request: Any) -> BurstPlan:
        if request.use_structured_output:
            return PLAIN
        rng = self._rng
        depth = rng.choice([0, self._depth, self._depth])
        return BurstPlan(rng.choice([0, 1, 3, 7]), rng.choice([1, 1, 2, 3, 8]), depth)
