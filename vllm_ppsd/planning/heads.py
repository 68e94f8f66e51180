"""The exit heads that a plan may choose from: what each costs, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vllm_ppsd.config.layout import ModelShape
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.planning.times import Profile

GAINS = {1: 0.0, 2: 0.04}
"""Acceptance of a head by its decoder layers, beside that of one decoder layer: the demo model's
at exit 20 after a short training (docs/heads.md)."""

HELD = {1 / 6: 0.945, 1 / 4: 0.966, 1 / 3: 0.976, 1 / 2: 0.987, 1.0: 1.0}
"""Share of the target's text that the most frequent tokens hold, by their share of the
vocabulary: a draft can be right nowhere else. The demo model's, docs/heads.md."""

ASSUMPTION = (
    "another head takes as long as its weights are large beside the measured one's; what it would "
    "accept beside the one whose rates are given: two layers "
    f"{GAINS[2]:+.2f}, and the share of the text that its draft vocabulary holds (the demo model's)"
)


@dataclass(frozen=True)
class Choice:
    """A head, with what it is counted with.

    Attributes:
        config: of the head; its exit layer does not count.
        rates: acceptance rate by exit layer.
    """

    config: ExitHeadConfig
    rates: Mapping[int, float]

    @property
    def name(self) -> str:
        """What tables call it."""
        kind = {0: self.config.head_type, 1: "1 layer"}.get(
            self.config.num_layers, f"{self.config.num_layers} layers"
        )
        rows = self.config.draft_vocab_size or self.config.target.vocab_size
        return f"{kind}, {rows:,} tokens"

    def training(self, model: str, exit_layer: int) -> str:
        """Return the command that trains it."""
        layers = f" --layers {self.config.num_layers}" if self.config.num_layers else ""
        rows = self.config.draft_vocab_size or self.config.target.vocab_size
        return (
            f"vllm-ppsd train {model} --exit-layer {exit_layer} --head {self.config.head_type}"
            f"{layers} --draft-vocab-size {rows} --data PROMPTS.jsonl -o HEAD-{exit_layer}"
        )

    def profile(self, times: Profile, shape: ModelShape) -> Profile:
        """Return ``times`` with this head's in place of the head's that they were measured with."""
        assert times.head is not None, "times without a head are refused before"
        factor = shape.head_cost(self.config) / shape.head_cost(times.head)
        by_lanes = {
            lanes: parts.model_copy(update={"head": parts.head * factor})
            for lanes, parts in times.by_lanes.items()
        }
        return times.model_copy(update={"by_lanes": by_lanes, "head": self.config})


def choices(base: ExitHeadConfig, rates: Mapping[int, float]) -> Iterator[Choice]:
    """Yield the heads of every size and draft vocabulary that are looked at.

    Args:
        base: the head that ``rates`` belong to, of one decoder layer.
        rates: its acceptance rate by exit layer.
    """
    vocabulary = base.target.vocab_size
    held = _held((base.draft_vocab_size or vocabulary) / vocabulary)
    for layers, gain in GAINS.items():
        for share, holds in HELD.items():
            config = base.model_copy(
                update={
                    "head_type": "transformer",
                    "num_layers": layers,
                    "start_layer": None,
                    "draft_vocab_size": max(1, round(vocabulary * share)),
                }
            )
            yield Choice(
                config,
                {
                    exit_layer: min(1.0, max(0.0, (rate + gain) * holds / held))
                    for exit_layer, rate in rates.items()
                },
            )


def _held(share: float) -> float:
    """Return the share of the text that so much of the vocabulary holds."""
    return float(np.interp(share, [0.0, *HELD], [0.0, *HELD.values()]))
