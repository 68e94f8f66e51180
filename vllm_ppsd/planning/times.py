"""What the parts of a decode step take: measured, or assumed from weights."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from vllm_ppsd.costs import ModelShape
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.files import read_model


class Parts(BaseModel):
    """Milliseconds that one stage takes for a step, by part.

    Attributes:
        layer: one decoder layer.
        head: the exit head: its layers and its share of the LM head.
        lm_head: the LM head of the last stage.
        sampler: sampling, and all else on the last stage behind the LM head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: float = Field(gt=0)
    head: float = Field(ge=0)
    lm_head: float = Field(ge=0)
    sampler: float = Field(ge=0)


class Profile(BaseModel):
    """Times of a model on a machine, all in milliseconds.

    Attributes:
        model: what was measured.
        hardware: on what.
        num_layers: decoder layers of the model.
        by_lanes: parts of a step by the number of its lanes.
        hand_over: from the end of a stage's layers to the beginning of the next one's.
        verdict: from the end of sampling to the verdict on stage 0.
        control: from the end of sampling, by way of the scheduler, to the beginning of
            stage 0's layers for the token's own step.
        control_beside: the same while stages have other requests' work, if it was seen:
            the scheduler may share its cores with them.
        prepare: between the work on two steps that follow each other on stage 0: what it
            takes to prepare the inputs, which otherwise is part of ``control``.
        contention: times that work takes longer while other stages are busy, too.
        head: the exit head whose times stand in ``by_lanes``, where there was one.
        assumed: which of these are assumptions; all others were measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    hardware: str
    num_layers: int = Field(ge=2)
    by_lanes: dict[PositiveInt, Parts] = Field(min_length=1)
    hand_over: float = Field(ge=0)
    verdict: float = Field(ge=0)
    control: float = Field(ge=0)
    control_beside: float | None = Field(default=None, ge=0)
    prepare: float = Field(default=0.0, ge=0)
    contention: float = Field(default=1.0, ge=1)
    head: ExitHeadConfig | None = None
    assumed: list[str] = []

    def at(self, lanes: float) -> Parts:
        """Return the parts of a step of so many lanes, on straight lines between those known.

        Beyond the last known number of lanes, on the line through the last two.
        """
        known = sorted(self.by_lanes)
        if len(known) == 1 or lanes <= known[0]:
            return self.by_lanes[known[0]]
        right = min(max(bisect_left(known, lanes), 1), len(known) - 1)
        low, high = known[right - 1], known[right]
        share = (lanes - low) / (high - low)
        before, after = self.by_lanes[low], self.by_lanes[high]
        return Parts(
            **{
                name: max(1e-9, value + share * (getattr(after, name) - value))
                for name, value in before
            }
        )

    def control_of(self, groups: int) -> float:
        """Return the way of a token through the scheduler, with so many groups of requests."""
        return self.control if groups == 1 or self.control_beside is None else self.control_beside

    def over_link(self, delay: float) -> Profile:
        """Return the profile with a link of ``delay`` ms each way between the stages."""
        return self.model_copy(
            update={
                "hand_over": self.hand_over + delay,
                "verdict": self.verdict + delay,
                "control": self.control + delay,
                "control_beside": self.control_of(2) + delay,
            }
        )


def read_profile(path: Path) -> Profile:
    """Read what ``vllm-ppsd profile`` wrote.

    Raises:
        PPSDConfigError: there is no such file, or it is no profile.
    """
    return read_model(path, Profile)


def assumed_profile(
    model: str, shape: ModelShape, head: ExitHeadConfig | None, layer_ms: float = 1.0
) -> Profile:
    """Return a profile from weights alone: decoding is bound by reading them.

    Args:
        model: its name.
        shape: its sizes.
        head: the exit head; without one drafts cost nothing.
        layer_ms: what a layer takes; speedups do not depend on it.
    """
    parts = Parts(
        layer=layer_ms,
        head=layer_ms * shape.head_cost(head) if head else 0.0,
        lm_head=layer_ms * shape.lm_head_cost,
        sampler=0.0,
    )
    return Profile(
        model=model,
        hardware="none: nothing was measured",
        num_layers=shape.num_layers,
        by_lanes={1: parts},
        hand_over=0.0,
        verdict=0.0,
        control=0.0,
        head=head,
        assumed=[
            "a layer, the exit head and the LM head take as long as their weights are large",
            "a step of many lanes takes as long as a step of one",
            "hand-overs, verdicts, sampling, inputs and the scheduler take no time",
            "stages do not slow each other down",
        ],
    )
