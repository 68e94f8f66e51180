"""``PPSDConfig``: the one config object that every way of asking for PPSD leads to."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points
from itertools import accumulate
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from vllm.config import SpeculativeConfig
from vllm.config.utils import config
from vllm.utils.hashing import safe_hash
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.protocol import PLAIN, BurstPlan
from vllm_ppsd.protocol.acceptance import STEPS


class SyntheticDrafter(BaseModel):
    """A drafter for tests and benchmarks: right with a chosen probability.

    Attributes:
        record: JSON-lines file of recorded outputs, one object a line with
            ``prompt_token_ids`` and ``output_token_ids``, made by the same engine
            in the same mode.
        acceptance: probability that a draft is the recorded token.
        seed: seed of the choice, which depends on it, the prompt and the position
            only, so that a run can be repeated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: str
    acceptance: float = Field(ge=0.0, le=1.0)
    seed: int = 0


MAX_BURST = STEPS
"""Tokens of a lane, at most."""


class FixedBurst(BaseModel):
    """How many tokens the lanes of a pipeline carry, the same for every request and tick.

    Attributes:
        reentry: drafts sent along behind a known token: after a miss, and where nothing follows
            before the verdict.
        following: tokens, all drafts, of each lane that is sent before the verdict on the lane
            before it; 0 to wait for the verdict (draft, then verify).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reentry: int = Field(default=0, ge=0, lt=MAX_BURST)
    following: int = Field(default=1, ge=0, le=MAX_BURST)


MOST_CONTINUATIONS = STEPS
"""How often a head goes on at most, which may be more often than it was trained for."""


@config
class PPSDConfig(SpeculativeConfig):
    """vLLM's speculative config for the method ``ppsd``.

    In a pipeline, the engine below the front end runs plain decoding, and this
    object says which lanes of it count; on one device, the engine runs vLLM's own
    speculative decoding with PPSD's proposer. Of vLLM's fields only ``method``,
    ``model``, ``num_speculative_tokens`` and the two target configs are used.
    """

    method: Literal["ppsd"] = "ppsd"
    """The method's name."""

    model: str | None = None
    """Folder of the exit head; None only with the synthetic drafter."""

    max_drafts: int = Field(default=1, ge=0)
    """Drafts of one request that may be in flight, the user's
    ``num_speculative_tokens``; 0 is plain decoding. vLLM's own field of that name
    must be positive, so there it is at least 1."""

    exit_layer: int = Field(default=0, ge=1)
    """Number of decoder layers before the exit (E = 12: layers 0..11 have run)."""

    layer_partition: list[int] = dataclasses.field(default_factory=list)
    """Decoder layers per stage; in a pipeline the first equals ``exit_layer``."""

    draft_threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """On one device, nothing is drafted behind drafts that are all right with a lower probability
    than this, by the head, for a request of ordinary acceptance; None in a pipeline."""

    draft_sampling: Literal["greedy", "coupled", "probabilistic"] = "greedy"
    """How drafts for sampled requests are made: ``greedy``, the head's most probable
    token; ``coupled``, with the noise that they are verified with; ``probabilistic`` (V1 on one
    device, which shares no noise), drawn from the head's distribution, which vLLM's rejection
    sampler is given."""

    head_steps: int = Field(default=1, ge=1)
    """Draft steps that the head was trained for; above 1 it has continuations, and on one
    device drafts with them alone."""

    deeper_layers: list[int] = dataclasses.field(default_factory=list)
    """Of a multi-depth head, the ends of the stages whose states it reads."""

    exact: bool = True
    """In a pipeline, lanes carry one token: the kernels see the shapes of plain decoding, and the
    output of one request is bit-identical."""

    burst: FixedBurst | None = None
    """In a pipeline, where lanes are not exact: how many tokens they carry; None to decide for
    each request by what parts of a tick take and how often its drafts are right."""

    load_adaptive: bool = True
    """In a pipeline, let requests draft only as far as the stages have room."""

    synthetic_drafter: SyntheticDrafter | None = None
    """Replace the head's drafts by recorded output; for tests and benchmarks only."""

    def __post_init__(self) -> None:
        """Set vLLM's own field; ``vllm_ppsd.config.entry`` resolves the others."""
        self.num_speculative_tokens = max(1, self.max_drafts, self.longest_burst)

    @model_validator(mode="after")
    def _verify_args(self) -> PPSDConfig:
        if self.is_pipelined and self.layer_partition[0] != self.exit_layer:
            raise PPSDConfigError(
                f"stage 0 must hold the {self.exit_layer} layers before the exit, "
                f"but the layers are split as {self.layer_partition}"
            )
        if self.is_pipelined and self.draft_threshold is not None:
            raise PPSDConfigError(
                f"draft_threshold={self.draft_threshold} is for one device (pipeline size 1); in "
                "a pipeline a doubtful draft takes no time of its own; leave draft_threshold out"
            )
        self._verify_burst()
        if self.head_steps > 1 and not self.is_pipelined and self.max_drafts > MOST_CONTINUATIONS:
            raise PPSDConfigError(
                f"num_speculative_tokens={self.max_drafts}, but a head goes on for at most "
                f"{MOST_CONTINUATIONS} tokens; ask for so many or fewer"
            )
        if self.model is None and self.max_drafts:
            if not self.is_pipelined:
                raise PPSDConfigError("PPSD on one device needs an exit head to draft")
            if self.synthetic_drafter is None:
                raise PPSDConfigError("PPSD needs an exit head or a synthetic drafter to draft")
        return self

    def _verify_burst(self) -> None:
        if self.burst is not None and self.exact:
            raise PPSDConfigError(
                "burst says how many tokens lanes carry, and with exact=true they carry one; say "
                "'exact': false, or leave burst out"
            )
        if self.exact or not self.max_drafts:
            return
        installed = [entry.name for entry in entry_points(group=LOGITSPROCS_GROUP)]
        if installed or getattr(self.target_model_config, "logits_processors", None):
            raise PPSDConfigError(
                "logits processors of one's own see the tokens of a step one by one, which lanes "
                "of several tokens do not have; leave --logits-processors out (and uninstall those "
                f"that vLLM loads by itself: {', '.join(installed) or 'none'}), or say "
                "'exact': true"
            )
        if self.draft_sampling != "coupled":
            raise PPSDConfigError(
                f"draft_sampling={self.draft_sampling!r} draws a token's noise anew each time that "
                "it is sampled, and in lanes of several tokens that is more than once; leave "
                "draft_sampling out, or say 'exact': true"
            )
        if self.deeper_layers:
            raise PPSDConfigError(
                f"the exit head {self.model} reads the states of later stages, of one token a "
                "lane; say 'exact': true, or name a head that reads the exit's alone"
            )
        if self.model is not None and self.longest_burst > 1 and self.head_steps == 1:
            raise PPSDConfigError(
                f"the exit head {self.model} drafts one token, and cannot go on from it; leave "
                "exact and burst out, or name a head that was trained for more steps"
            )

    def compute_hash(self) -> str:
        """Return what compiled graphs depend on besides the target: the head's make.

        The target's own graph is that of plain decoding.
        """
        make = ExitHeadFolder.open(self.model).config.model_dump_json() if self.model else ""
        return str(safe_hash(f"ppsd {make}".encode(), usedforsecurity=False).hexdigest())

    def __repr__(self) -> str:
        return (
            f"PPSDConfig(model={self.model!r}, exit_layer={self.exit_layer}, "
            f"max_drafts={self.max_drafts}, "
            f"layer_partition={self.layer_partition}, exact={self.exact}, burst={self.burst!r}, "
            f"synthetic_drafter={self.synthetic_drafter!r})"
        )

    @property
    def is_pipelined(self) -> bool:
        """Whether stage 0 drafts while later stages verify; else one device does both."""
        return len(self.layer_partition) > 1

    @property
    def times_parts(self) -> bool:
        """Whether the policy goes by what the parts of a tick take each stage."""
        return self.max_drafts > 0 and not self.exact

    @property
    def makes_noise(self) -> bool:
        """Whether a pipeline samples with its own noise instead of vLLM's."""
        return self.is_pipelined and self.draft_sampling != "greedy"

    @property
    def plan(self) -> BurstPlan | None:
        """How every request drafts; None if that is decided for each while serving."""
        if not self.max_drafts or not self.is_pipelined:
            return PLAIN
        if self.exact:
            return BurstPlan(reentry=0, following=1, depth=self.max_drafts)
        if self.burst is None:
            return None
        depth = self.max_drafts if self.burst.following else 0
        return BurstPlan(self.burst.reentry, max(1, self.burst.following), depth)

    @property
    def goes_on(self) -> bool:
        """Whether the head's continuations are run."""
        return self.head_steps > 1 and (not self.is_pipelined or self.longest_burst > 1)

    @property
    def longest_burst(self) -> int:
        """Tokens of a lane, or drafts that one outcome is of, at most."""
        plan = self.plan
        return MAX_BURST if plan is None else max(plan.reentry + 1, plan.following)

    def uses_draft_model(self) -> bool:
        """Have vLLM allocate key/value slots for drafts, as it does for draft models."""
        return not self.is_pipelined and self.max_drafts > 0

    @property
    def feedback_stages(self) -> list[int]:
        """The stages whose states stage 0's head reads, in its order."""
        if not self.is_pipelined or not self.max_drafts:
            return []
        ends = list(accumulate(self.layer_partition))
        return [ends.index(layer) for layer in self.deeper_layers]


USER_OPTIONS: tuple[str, ...] = (
    "method",
    "model",
    "num_speculative_tokens",
    "exit_layer",
    "draft_threshold",
    "draft_sampling",
    "exact",
    "burst",
    "load_adaptive",
    "synthetic_drafter",
)
"""What a user may write into ``speculative_config``; everything else is refused."""


def check_option_names(options: dict[str, Any]) -> None:
    """Refuse options that PPSD does not know, by name.

    Raises:
        PPSDConfigError: at least one key is unknown.
    """
    unknown = sorted(set(options) - set(USER_OPTIONS))
    if unknown:
        raise PPSDConfigError(
            f"unknown key(s) in the PPSD speculative config: {', '.join(unknown)}; "
            f"known are {', '.join(USER_OPTIONS)}"
        )
