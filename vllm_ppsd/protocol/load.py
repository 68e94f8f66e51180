"""Which requests enter the next tick: drafts fill stages that would otherwise idle.

A request that drafts takes a lane in every tick and retires 1 / (alpha + n(1 - alpha))
tokens a tick (n stages, acceptance rate alpha; ``vllm_ppsd.costs.ideal_speedup`` over
n). A request that does not takes a lane in every n-th tick and retires 1 / n. The more
lanes a tick carries, the longer it takes, so with many requests the lanes that drafts
cost are worth more to requests that do not draft. The policy lets those requests draft with
which the tokens per second come out highest; the others are dealt over the ticks evenly,
which in the limit is plain micro-batching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_ppsd.protocol.acceptance import AcceptanceBook
from vllm_ppsd.protocol.bursts import BurstPlan
from vllm_ppsd.protocol.costs import TickCosts
from vllm_ppsd.protocol.flight import may_enter
from vllm_ppsd.protocol.tick import Lane, Outcome

DOUBT = 500
"""Ticks without drafting after which a low acceptance rate is mostly doubted, and tried anew."""

MARGIN = 1.25
"""Times the tokens per second without drafts that drafting must promise where several requests
decode: the head's time over many lanes and the scheduler's are not in what a tick takes by its
lanes. (docs/measurements.md)"""

UNBOUNDED = 2**31
"""A depth that bounds nothing."""

LOG_EVERY = 10.0
"""Seconds between two lines of the log about the load, at least."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request whose prompt is finished.

    Attributes:
        request_id: the engine's id.
        unverified: its ticks whose outcome has not come back.
        may_draft: whether it may draft at all.
        drafted: whether stage 0 drafts behind its newest lane in flight, if there is one.
        depth: of its drafted ticks, how many may be unverified, if the pipeline's depth allows.
    """

    request_id: str
    unverified: int
    may_draft: bool = True
    drafted: bool = True
    depth: int = UNBOUNDED

    def may_enter(self, max_drafts: int, alone: bool) -> bool:
        """Whether it may be sent on with so many drafts; ``alone``: no other is decoding."""
        behind_a_draft = self.drafted or not self.unverified
        return behind_a_draft and may_enter(self.unverified, min(max_drafts, self.depth), alone)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What is decided for a tick.

    Attributes:
        entering: ids of the requests that enter it.
        drafting: ids of the requests behind whose lanes stage 0 drafts.
        decoding: ids of all requests that were asked about.
    """

    entering: set[str]
    drafting: set[str]
    decoding: set[str]


class Admitting(Protocol):
    """Decides which decoding requests enter each tick, and how they draft."""

    def choose(self, request_ids: Sequence[str], waits: bool = False) -> None:
        """Choose the plans of all running requests, once a tick.

        Args:
            request_ids: all that run.
            waits: whether stages wait for this.
        """

    def arrived(self, request_id: str, sampled: bool) -> None:
        """A request has come, whose tokens are sampled or the most probable ones."""

    def plan(self, request_id: str) -> BurstPlan:
        """Return how a request drafts, where it may."""

    def full(self, requests: int, in_flight: int) -> bool:
        """Whether the stages are full: the next tick waits until a result is in.

        Args:
            requests: all that are not finished.
            in_flight: ticks whose result has not come back.
        """

    def admit(self, requests: Sequence[Decoding], prompts: bool = False) -> Admitted:
        """Decide for the next tick.

        Args:
            requests: every decoding request, in the scheduler's order.
            prompts: whether prompts are to enter it.
        """

    def drafts_beside_prompts(self, requests: int) -> bool:
        """Whether stage 0 drafts in a tick that carries a prompt.

        The head is run over all tokens of a tick then, instead of writing its key/value
        entries alone, which takes longer than a few drafts are worth.

        Args:
            requests: that are running or in the tick.
        """

    def retired(self, tokens: int, now: float, prompts: bool) -> None:
        """A tick's result is in.

        Args:
            tokens: of all requests that it has retired.
            now: seconds of any clock.
            prompts: whether the tick carried any.
        """

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Drafts of a lane, or behind it, were compared with what the last stage sampled."""

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""

    def news(self, now: float) -> str | None:
        """Return words for the log if the choice has changed, now and then.

        Args:
            now: seconds of any clock.
        """


class FixedDepth:
    """Lets every request draft as deep as it may, a token a lane, whatever the load.

    Args:
        max_drafts: drafts of a request that may be unverified.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts

    def choose(self, request_ids: Sequence[str], waits: bool = False) -> None:
        """All have the same plan."""

    def arrived(self, request_id: str, sampled: bool) -> None:
        """All have the same plan."""

    def plan(self, request_id: str) -> BurstPlan:
        """Return the one plan."""
        return BurstPlan(reentry=0, following=1, depth=self._max_drafts)

    def drafts_beside_prompts(self, requests: int) -> bool:
        """Whether stage 0 drafts in a tick that carries a prompt: always."""
        return True

    def full(self, requests: int, in_flight: int) -> bool:
        """Whether the next tick waits: never."""
        return False

    def admit(self, requests: Sequence[Decoding], prompts: bool = False) -> Admitted:
        """Decide for the next tick, whether prompts are to enter it or not."""
        drafting = {r.request_id for r in requests if r.may_draft and self._max_drafts}
        entering = {
            r.request_id
            for r in requests
            if r.may_enter(
                self._max_drafts if r.request_id in drafting else 0, alone=len(requests) == 1
            )
        }
        return Admitted(entering, drafting, {r.request_id for r in requests})

    def retired(self, tokens: int, now: float, prompts: bool) -> None:
        """Nothing is learned of what the plan yields."""

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Nothing is learned."""

    def forget(self, request_id: str) -> None:
        """Nothing is remembered."""

    def news(self, now: float) -> str | None:
        """Return words for the log: there is nothing new."""
        return None


class LoadPolicy(FixedDepth):
    """Lets those requests draft, a token a lane, with which most tokens a second come out.

    Args:
        stages: n.
        max_drafts: drafts of a request that may be unverified.
        costs: what a tick takes by its lanes.

    Attributes:
        drafting: how many requests were let draft last.
        acceptance: recent acceptance rates.
    """

    def __init__(self, stages: int, max_drafts: int, costs: TickCosts) -> None:
        super().__init__(max_drafts)
        self._stages, self._costs = stages, costs
        self.acceptance = AcceptanceBook(DOUBT)
        self.drafting = self._decoding = 0
        self._said = (-1, 0.0)

    def full(self, requests: int, in_flight: int) -> bool:
        """Whether the stages are full: the next tick waits until a result is in.

        A tick more would only split the requests into more and smaller groups, which
        stay apart from then on, and keep prompts apart from the decoding lanes that
        could share their ticks. One request alone has a tick sent ahead.
        """
        return requests > 1 and in_flight >= max(self._stages, self._max_drafts + 1)

    def admit(self, requests: Sequence[Decoding], prompts: bool = False) -> Admitted:
        """Decide for the next tick."""
        self._decoding = len(requests)
        drafting = self._choose(requests)
        # Plain decoding is dealt evenly, or all of it would share one tick and leave the
        # stages behind it idle. Beside a prompt, which takes as long as many lanes, all
        # that is ready goes along.
        plain = len(requests) - len(drafting)
        if not prompts:
            plain = math.ceil(plain / self._stages)
        entering: set[str] = set()
        for request in requests:
            if request.request_id in drafting:
                if request.may_enter(self._max_drafts, alone=len(requests) == 1):
                    entering.add(request.request_id)
            elif request.unverified == 0 and plain > 0:
                entering.add(request.request_id)
                plain -= 1
        return Admitted(entering, drafting, {r.request_id for r in requests})

    def drafts_beside_prompts(self, requests: int) -> bool:
        """Whether stage 0 drafts in a tick that carries a prompt: of one request alone."""
        return requests == 1

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Learn how many drafts were hits."""
        for i in range(outcome.compared):
            self.acceptance.judged(outcome.request_id, hit=i < outcome.accepted)

    def forget(self, request_id: str) -> None:
        """Drop the acceptance rate of a request that has left the engine."""
        self.acceptance.forget(request_id)

    def news(self, now: float) -> str | None:
        """Return how many requests draft if that has changed, now and then."""
        drafting, at = self._said
        if self.drafting == drafting or now - at < LOG_EVERY:
            return None
        self._said = self.drafting, now
        return (
            f"{self.drafting} of {self._decoding} decoding requests draft; recent acceptance rate "
            f"{self.acceptance.overall:.2f}, {self._costs.describe()}"
        )

    def _choose(self, requests: Sequence[Decoding]) -> set[str]:
        """Return the requests that may draft: those with the best acceptance rates."""
        ranked = sorted(
            (r.request_id for r in requests if r.may_draft and self._max_drafts),
            key=self.acceptance.rate,
            reverse=True,
        )
        rates = [0.0]
        for request_id in ranked:
            rates.append(rates[-1] + self._tokens_per_tick(self.acceptance.rate(request_id)))
        worth = [
            self._tokens_per_second(rate, count, len(requests) - count)
            for count, rate in enumerate(rates)
        ]
        # Of equals the one that drafts more: acceptance is only measured by drafting.
        self.drafting = max(range(len(worth)), key=lambda count: (worth[count], count))
        if len(requests) > 1 and worth[self.drafting] < MARGIN * worth[0]:
            self.drafting = 0
        for request_id in ranked[self.drafting :]:
            self.acceptance.decay_to_prior(request_id)
        return set(ranked[: self.drafting])

    def _tokens_per_tick(self, alpha: float) -> float:
        """Tokens that a drafting request retires per tick."""
        hit_ticks = self._stages / min(self._stages, self._max_drafts + 1)
        return 1 / (alpha * hit_ticks + self._stages * (1 - alpha))

    def _tokens_per_second(self, drafted_rate: float, drafting: int, others: int) -> float:
        """Tokens per second if ``drafting`` requests draft, and ``others`` do not."""
        # Fewer than one lane a tick on average: some ticks are not there at all.
        lanes = max(1.0, drafting + others / self._stages)
        return (drafted_rate + others / self._stages) / self._costs.seconds(lanes)
