"""What the last stage returns: vLLM's output, and the drafts it was compared with."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from vllm.v1.outputs import ModelRunnerOutput


@dataclass
class PPSDModelRunnerOutput(ModelRunnerOutput):
    """A step's samples with stage 0's draft for each retired position.

    Attributes:
        drafts: request id to drafted token; only requests whose lane counted and
            that stage 0 drafted for.
    """

    drafts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, output: ModelRunnerOutput, drafts: dict[str, int]) -> Self:
        """Return ``output`` with ``drafts``."""
        values = {f.name: getattr(output, f.name) for f in fields(ModelRunnerOutput)}
        return cls(**values, drafts=drafts)

    @classmethod
    def stale(cls, request_ids: list[str]) -> Self:
        """Return the output of a tick in which no lane counts."""
        return cls(
            req_ids=request_ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(request_ids)},
            sampled_token_ids=[[] for _ in request_ids],
        )
