"""What the scheduler sends: vLLM's step, and PPSD's tick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from vllm.v1.core.sched.output import SchedulerOutput

from vllm_ppsd.protocol import Tick


@dataclass
class PPSDSchedulerOutput(SchedulerOutput):
    """A step.

    Attributes:
        tick: what PPSD's scheduler decided for it.
    """

    tick: Tick = field(kw_only=True)

    @classmethod
    def of(cls, output: SchedulerOutput, tick: Tick) -> Self:
        """Return ``output`` with a tick."""
        values = {f.name: getattr(output, f.name) for f in fields(SchedulerOutput)}
        return cls(**values, tick=tick)
