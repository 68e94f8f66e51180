"""``config.json`` of an exit head: its fields, version and target."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

HeadType = Literal["lens", "transformer"]


class Target(BaseModel):
    """The model that a head was made for.

    Attributes:
        fingerprint: see ``vllm_ppsd.exit_head.fingerprint``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    num_hidden_layers: int = Field(ge=2)
    hidden_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class ExitHeadConfig(BaseModel):
    """What an exit head is made of.

    Attributes:
        head_type: ``lens`` (final norm and LM head on the exit's state) or
            ``transformer`` (decoder layers of the target's own class before them).
        exit_layer: number of decoder layers before the exit.
        num_layers: decoder layers of a ``transformer`` head, else 0.
        start_layer: the decoder layers before the target's layer that a ``transformer``
            head's first one started from, where that is further on than the exit: an input
            map then carries the states there. None for the layer right behind the exit.
        output_map: whether an affine map stands between the head's norm and the LM head.
        draft_vocab_size: number of tokens the head can draft, or None for all.
        deeper_layers: of a multi-depth head, the decoder layers before the end of each
            later stage, whose states it reads too: of the token before from the second
            stage, of the one before that from the third, and so on. Empty for a head
            that reads the exit's state alone.
        steps: draft steps that the head was trained for. Step 1 reads the exit's state; every
            further one is a continuation, from a predicted final state and the token drafted
            there. 1 for a head without continuations, as all of format version 1 are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    speculators_model_type: Literal["ppsd"] = "ppsd"
    architectures: list[Literal["PPSDExitHead"]] = ["PPSDExitHead"]
    format_version: Literal[1, 2] = 2
    head_type: HeadType
    exit_layer: int = Field(ge=1)
    num_layers: int = Field(default=0, ge=0)
    start_layer: int | None = None
    output_map: bool = False
    draft_vocab_size: int | None = Field(default=None, ge=1)
    deeper_layers: list[int] = []
    steps: int = Field(default=1, ge=1, le=8)
    target: Target

    @property
    def first_layer(self) -> int:
        """The decoder layers before the one that the head's first layer started from."""
        return self.exit_layer if self.start_layer is None else self.start_layer

    def source_layer(self, index: int) -> int:
        """The number of the target's layer that a head's layer started from."""
        return min(self.first_layer + index, self.target.num_hidden_layers - 1)

    @property
    def two_stages(self) -> list[int]:
        """Decoder layers per stage in a pipeline of two."""
        return [self.exit_layer, self.target.num_hidden_layers - self.exit_layer]

    @property
    def stages(self) -> list[int] | None:
        """Decoder layers per stage of the pipeline a multi-depth head was made for, else None."""
        if not self.deeper_layers:
            return None
        ends = [0, self.exit_layer, *self.deeper_layers]
        return [after - before for before, after in pairwise(ends)]

    @model_validator(mode="before")
    @classmethod
    def _without_mlp(cls, values: Any) -> Any:
        """Refuse the ``mlp`` heads of 0.1; other heads of 0.1 carry their field as null."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.pop("intermediate_size", None) is not None or values.get("head_type") == "mlp":
            raise ValueError(
                "mlp heads are no longer supported (a decoder layer accepted 0.13 more); train a "
                "transformer head"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ExitHeadConfig:
        layers = self.target.num_hidden_layers
        if self.exit_layer >= layers:
            raise ValueError(
                f"exit layer {self.exit_layer} is out of range: the target has {layers} layers, "
                f"so it must lie between 1 and {layers - 1}"
            )
        if (self.head_type == "transformer") != (self.num_layers > 0):
            raise ValueError(
                f"num_layers is {self.num_layers}, but the head_type is {self.head_type!r}; "
                "exactly the transformer head has layers"
            )
        if self.start_layer is not None:
            last = layers - self.num_layers
            if self.head_type != "transformer":
                raise ValueError(
                    f"start_layer is {self.start_layer}, but the head_type is "
                    f"{self.head_type!r}; only the transformer head has layers"
                )
            if not self.exit_layer < self.start_layer <= last:
                raise ValueError(
                    f"start layer {self.start_layer} is out of range: behind exit layer "
                    f"{self.exit_layer}, a head of {self.num_layers} layer(s) can start from "
                    f"layers {self.exit_layer + 1} to {last}; leave it out to start right behind "
                    "the exit"
                )
        if self.draft_vocab_size is not None and self.draft_vocab_size > self.target.vocab_size:
            raise ValueError(
                f"draft_vocab_size {self.draft_vocab_size} exceeds the target's "
                f"vocabulary of {self.target.vocab_size}"
            )
        if self.steps > 1 and self.head_type != "transformer":
            raise ValueError(
                f"steps is {self.steps}, but the head_type is {self.head_type!r}; only the "
                "transformer head goes on from its own prediction"
            )
        if self.steps > 1 and self.format_version == 1:
            raise ValueError(f"steps is {self.steps}, but format_version 1 has none; write 2")
        stages = self.stages
        if stages and (min(stages) < 1 or self.deeper_layers[-1] != layers):
            raise ValueError(
                f"the deeper layers {', '.join(map(str, self.deeper_layers))} must rise from "
                f"behind the exit layer {self.exit_layer} to {layers}, the target's layers"
            )
        return self
