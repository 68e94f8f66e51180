"""What a pass, a draft and a tick cost, and the speedup that follows (plain Python).

Decoding a few tokens is bound by reading weights. So before anything is measured, costs
are counted in decoder layers: the LM head and an exit head cost what they weigh beside a
layer, and a pass over several tokens what a pass over one does. ``vllm_ppsd.planning``
puts measured milliseconds into the same formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.protocol.acceptance import PRIOR


@dataclass(frozen=True)
class ModelShape:
    """What decides a layer's and the LM head's weight, in elements."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def layer_weights(self) -> int:
        """Weights of one decoder layer (attention and gated MLP)."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def lm_head_cost(self) -> float:
        """Weights of the LM head, in layers."""
        return self.vocab_size * self.hidden_size / self.layer_weights

    def head_cost(self, head: ExitHeadConfig) -> float:
        """Weights of an exit head with its share of the LM head, in layers."""
        rows = head.draft_vocab_size or self.vocab_size
        weights = rows * self.hidden_size
        if head.start_layer is not None:
            weights += self.hidden_size**2
        if head.output_map:
            weights += self.hidden_size**2
        return head.num_layers + weights / self.layer_weights

    def draft_cost(self, head: ExitHeadConfig) -> float:
        """Weights that a draft reads on one device, as a share of a full pass's.

        A continuation reads the head and its fusion, any other draft the layers before the exit.
        """
        before: float = head.exit_layer
        if head.steps > 1:
            before = 2 * self.hidden_size**2 / self.layer_weights
        draft = before + self.head_cost(head)
        return draft / (self.num_layers + self.lm_head_cost)

    def tick_costs(self, partition: Sequence[int], head: ExitHeadConfig | None) -> TickCosts:
        """Return the costs in a pipeline by weights alone, in layers; without a head drafts
        cost nothing."""
        *before, last = map(float, partition)
        return TickCosts(
            stages=(*before, last + self.lm_head_cost),
            head=self.head_cost(head) if head else 0.0,
            read=layers_read(partition, head),
        )


def layers_read(partition: Sequence[int], head: ExitHeadConfig | None) -> dict[int, int]:
    """Return which later stages a head reads, each with the layers of stages 1 to it."""
    deeper = head.deeper_layers if head else []
    ends = enumerate(accumulate(partition))
    return {stage: end - partition[0] for stage, end in ends if end in deeper}


@dataclass(frozen=True)
class TickCosts:
    """What a tick of one request takes in a pipeline of n stages, in one unit throughout.

    Attributes:
        stages: s_0 … s_{n-1}, the layers of each stage, on the last with LM head and sampler.
        head: h, the exit head, which runs on stage 0 behind the hand-over of its states.
        hand_over: of the states to the next stage.
        verdict: from the last stage to stage 0.
        control: of the token from the last stage, by the scheduler, to stage 0.
        prepare: preparing inputs between two ticks on stage 0.
        restart: s_0 where the stages behind have nothing to do, if that is less.
        read: later stages whose states the head reads, each with what the layers of stages
            1 to it take.
    """

    stages: Sequence[float]
    head: float = 0.0
    hand_over: float = 0.0
    verdict: float = 0.0
    control: float = 0.0
    prepare: float = 0.0
    restart: float | None = None
    read: Mapping[int, float] = field(default_factory=dict)

    @property
    def hand_overs(self) -> float:
        """All hand-overs of a tick."""
        return (len(self.stages) - 1) * self.hand_over

    @property
    def plain(self) -> float:
        """A token of plain decoding: all stages, hand-overs and the scheduler."""
        return sum(self.stages) + self.hand_overs + self.control

    @property
    def loop(self) -> float:
        """L: from the begin of a tick until stage 0 has the verdict on it."""
        return sum(self.stages) + self.hand_overs + self.verdict

    @property
    def first(self) -> float:
        """F: what a tick takes of stage 0."""
        return self.stages[0] + self.head + self.prepare

    def period(self, drafts: int) -> float:
        """Return P, the time between ticks, which is what a hit takes.

        P = max(F, s_1, …, s_{n-1}, L / (K + 1)), since at most K + 1 ticks may be unverified.
        A multi-depth head that reads stage k waits until that stage's layers are done with the
        tick k before and the states have come back, as a verdict does: P is at least (F + the
        hand-overs and layers of stages 1 to k + the way back) / (k + 1). The verdict on a tick
        waits for the draft behind it: P is at least (all that + the draft's way and the
        verdict's) / (k + K + 1). Between equal stages on a fast link both are less than F.

        Args:
            drafts: K, in flight at most.
        """
        bounds = [self.first, *self.stages[1:], self.loop / (drafts + 1)]
        for stage, layers in self.read.items():
            drafted = self.first + stage * self.hand_over + layers + self.verdict
            bounds.append(drafted / (stage + 1))
            bounds.append((drafted + self.hand_over + self.verdict) / (stage + drafts + 1))
        return max(bounds)

    def begun(self, drafts: int) -> int:
        """Return J = min(K, floor(L / F)): ticks that stage 0 begins before a verdict is in."""
        return min(drafts, int(self.loop / self.first))

    def after_miss(self, drafts: int) -> float:
        """Return what the token behind a miss takes: the way through all stages.

        It begins when the stale tick that stage 0 is in then has ended. Stage 0 does not draft
        behind a tick whose layers end after the verdict.
        """
        restart = self.stages[0] if self.restart is None else self.restart
        layers_end = self.begun(drafts) * self.first + self.stages[0]
        stale_end = layers_end + (self.head if layers_end < self.loop else 0.0)
        trip = restart + sum(self.stages[1:]) + self.hand_overs + self.control
        return max(trip, stale_end + self.prepare)

    def per_token(self, alpha: float, drafts: int) -> float:
        """Return what a token takes at acceptance rate ``alpha``, at least one draft in flight."""
        return alpha * self.period(drafts) + (1 - alpha) * self.after_miss(drafts)


def ideal_speedup(stages: int, alpha: float) -> float:
    """Return n / (alpha + n(1 - alpha)): PPSD over a plain pipeline of n equal stages."""
    return stages / (alpha + stages * (1 - alpha))


def tokens_per_round(drafts: int, alpha: float) -> float:
    """Return (1 - alpha^(K+1)) / (1 - alpha): tokens that a full pass verifies on one device.

    Every draft is taken to be a hit with probability ``alpha`` if all before it were
    (Leviathan et al., arXiv 2211.17192, equation 1).
    """
    return float(drafts + 1) if alpha == 1 else (1 - alpha ** (drafts + 1)) / (1 - alpha)


def round_cost(drafts: float, draft_cost: float, token_cost: float = 0.0) -> float:
    """Return what a round on one device costs, in full passes: its drafts and the verify.

    Args:
        drafts: drafts of the round.
        draft_cost: cost of a draft, in full passes.
        token_cost: what a pass over one token more costs more, in passes over one token:
            next to nothing where reading weights takes longer than computing.
    """
    return 1 + drafts * (draft_cost + token_cost)


def one_device_speedup(drafts: int, draft_cost: float, alpha: float) -> float:
    """Return the speedup of ``drafts`` early-exit drafts a round over plain decoding.

    Args:
        drafts: drafts of every round.
        draft_cost: cost of a draft, in full passes.
        alpha: acceptance rate of a draft whose predecessors were hits.
    """
    return tokens_per_round(drafts, alpha) / round_cost(drafts, draft_cost)


def best_one_device_speedup(most: int, draft_cost: float, alpha: float) -> float:
    """Return the speedup at the best number of drafts up to ``most``; arguments as above."""
    return max(one_device_speedup(drafts, draft_cost, alpha) for drafts in range(most + 1))


def draft_threshold(draft_cost: float) -> float:
    """Return the probability of drafts under which drafting behind them does not pay.

    Behind drafts that are all right with probability p, the next one adds p * alpha tokens to a
    round, and takes time in which the rounds before it delivered draft_cost * speedup tokens; so p
    must exceed draft_cost * speedup / alpha. The prior stands for alpha here; the
    proposer scales p by a request's own recent acceptance rate.

    Args:
        draft_cost: cost of a draft, in full passes.
    """
    return min(1.0, draft_cost * best_one_device_speedup(8, draft_cost, PRIOR) / PRIOR)
