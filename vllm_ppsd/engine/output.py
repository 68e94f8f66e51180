"""What the scheduler sends: vLLM's tick, where stage 0 need not draft, and seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Self

from vllm.v1.core.sched.output import SchedulerOutput


@dataclass
class PPSDSchedulerOutput(SchedulerOutput):
    """A tick.

    Attributes:
        quiet: ids of requests that will not be sent on before this tick's result is
            back; a draft behind their lanes would be for nothing.
        seeds: of the requests that are new, unless vLLM's sampler draws.
    """

    quiet: frozenset[str] = field(default_factory=frozenset)
    seeds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, output: SchedulerOutput, quiet: Iterable[str], seeds: dict[str, int]) -> Self:
        """Return ``output`` with ``quiet`` and ``seeds``."""
        values = {f.name: getattr(output, f.name) for f in fields(SchedulerOutput)}
        return cls(**values, quiet=frozenset(quiet), seeds=seeds)
