"""Which requests enter the next tick, where each has a plan for its lanes.

A request that lanes follow before the verdict enters as often as its plan says. The others, which
enter as roots only (draft-then-verify and plain decoding), are dealt over the ticks evenly: all in
one tick would leave the stages behind it idle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_ppsd.protocol.acceptance import REENTRY, StepBook
from vllm_ppsd.protocol.burst_policy import BurstPolicy
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes
from vllm_ppsd.protocol.costs import PartCosts
from vllm_ppsd.protocol.load import Admitted, Decoding
from vllm_ppsd.protocol.tick import Lane, Outcome


class FixedPlan:
    """In place of ``BurstPolicy``: the same plan for every request, whatever the load.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: BurstPlan) -> None:
        self._plan = plan
        self.acceptance = StepBook()

    def choose(
        self, request_ids: Sequence[str], times: StageTimes, waits: bool = False
    ) -> dict[str, BurstPlan]:
        """Return the plan of every request."""
        return dict.fromkeys(request_ids, self._plan)

    def retired(self, tokens: int, now: float, prompts: bool) -> None:
        """Nothing is learned of what the plan yields."""

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self.acceptance.forget(request_id)

    def news(self, now: float) -> str | None:
        """Return words for the log: there is nothing new."""
        return None


class PlannedLoad:
    """Chooses plans, and the decoding requests of every tick by them.

    Args:
        stages: n.
        max_drafts: drafted ticks of a request that may be unverified, whatever its plan says.
        policy: chooses the plans.
        costs: what the parts of a tick take.
    """

    def __init__(
        self, stages: int, max_drafts: int, policy: BurstPolicy | FixedPlan, costs: PartCosts
    ) -> None:
        self._stages, self._max_drafts = stages, max_drafts
        self._policy, self.costs = policy, costs
        self._plans: dict[str, BurstPlan] = {}

    def arrived(self, request_id: str, sampled: bool) -> None:
        """A request has come, whose tokens are sampled or the most probable ones."""
        self._policy.acceptance.arrived(request_id, sampled)

    def plan(self, request_id: str) -> BurstPlan:
        """Return the plan of a request; a new one has that of another until the next tick."""
        if request_id not in self._plans:
            others = next(iter(self._plans.values()), None)
            self._plans[request_id] = others or self._chosen([request_id])[request_id]
        return self._plans[request_id]

    def choose(self, request_ids: Sequence[str], waits: bool = False) -> None:
        """Choose the plans of all running requests, once a tick."""
        self._plans = self._chosen(request_ids, waits) if request_ids else {}

    def full(self, requests: int, in_flight: int) -> bool:
        """Whether the stages are full: the next tick waits until a result is in.

        As ``LoadPolicy.full``, with the lanes that plans let follow.
        """
        follow = max((plan.depth for plan in self._plans.values()), default=0)
        depth = min(follow, self._max_drafts)
        return requests > 1 and in_flight >= max(self._stages, depth + 1)

    def admit(self, requests: Sequence[Decoding], prompts: bool = False) -> Admitted:
        """Decide for the next tick, by the plans; arguments as of ``Admitting``."""
        roots = [r for r in requests if not r.depth]
        dealt = len(roots) if prompts else math.ceil(len(roots) / self._stages)
        entering: set[str] = set()
        for request in requests:
            if request.depth:
                if request.may_enter(self._max_drafts, alone=len(requests) == 1):
                    entering.add(request.request_id)
            elif request.unverified == 0 and dealt > 0:
                entering.add(request.request_id)
                dealt -= 1
        drafting = {
            r.request_id
            for r in requests
            if r.may_draft and self._plans.get(r.request_id, PLAIN) != PLAIN
        }
        return Admitted(entering, drafting, {r.request_id for r in requests})

    def drafts_beside_prompts(self, requests: int) -> bool:
        """Whether stage 0 drafts in a tick that carries a prompt; of one alone."""
        return requests == 1

    def retired(self, tokens: int, now: float, prompts: bool) -> None:
        """Learn what plans really yield, once times are in seconds."""
        if self.costs.is_measured:
            self._policy.retired(tokens, now, prompts)

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Learn what became of the drafts of a lane, and of the first one behind it.

        Where that one replaces a draft, it was the draft that was right or wrong.
        """
        own, right = lane.samples - 1, len(outcome.tokens) - 1
        behind = outcome.redrafted
        steps, accepted = [*range(REENTRY, REENTRY + own)][: right + 1], right
        if right == own == behind:
            steps, accepted = [*steps, 1], outcome.accepted
        acceptance = self._policy.acceptance
        acceptance.judged(outcome.request_id, steps, accepted, lane.is_root and own > 0)
        if behind is not None:
            kept = [True] * min(right, behind) + [False] * (behind < right)
            mended = [behind == right and outcome.continues is not None] * (right < own)
            acceptance.drafted_again(kept, mended)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._policy.forget(request_id)
        self._plans.pop(request_id, None)

    def news(self, now: float) -> str | None:
        """Return words for the log, as ``BurstPolicy.news``, once times are in seconds."""
        news = self._policy.news(now) if self.costs.is_measured else None
        return f"{news}; {self.costs.describe()}" if news else None

    def _chosen(self, request_ids: Sequence[str], waits: bool = False) -> dict[str, BurstPlan]:
        return self._policy.choose(request_ids, self.costs.times(), waits)
