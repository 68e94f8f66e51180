"""vLLM's outputs with PPSD's values: what the scheduler sends, and what the last stage returns."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from vllm_ppsd.protocol import Tick, Verdict


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


@dataclass
class PPSDModelRunnerOutput(ModelRunnerOutput):
    """A step's samples.

    Attributes:
        verdict: what the last stage decided about them.
    """

    verdict: Verdict = field(kw_only=True)

    @classmethod
    def of(cls, output: ModelRunnerOutput, verdict: Verdict) -> Self:
        """Return ``output`` with a verdict."""
        values = {f.name: getattr(output, f.name) for f in fields(ModelRunnerOutput)}
        return cls(**values, verdict=verdict)


def without_tokens(tick: Tick) -> ModelRunnerOutput:
    """Return vLLM's output of a tick in which no lane counts."""
    request_ids = [lane.request_id for lane in tick.lanes]
    return ModelRunnerOutput(
        req_ids=request_ids,
        req_id_to_index={request_id: i for i, request_id in enumerate(request_ids)},
        sampled_token_ids=[[] for _ in request_ids],
    )
