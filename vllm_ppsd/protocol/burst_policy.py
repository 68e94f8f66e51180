"""Which plan every request decodes by: the one that is expected to yield most.

One request alone is a question of stages, links and what the head takes. With several, ticks take
longer the more rows they carry, so that bursts go first, and then drafting as a whole. Every
request gets the plan that would be best if all were like it, and ``DraftingGate`` counts whether
drafting really pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm_ppsd.protocol.acceptance import STEPS, StepBook
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes, describe
from vllm_ppsd.protocol.gate import DraftingGate, load_of
from vllm_ppsd.protocol.load import DOUBT
from vllm_ppsd.protocol.plan_search import PlanSearch, equal, rounded_rates, rounded_times
from vllm_ppsd.protocol.yields import YieldBook

BETTER = 1.02
"""Times what a plan yields that another must promise to take its place."""

TRIED = 0.85
"""Of what the best plan promises, what one must promise whose kind has never run."""

TRIED_AGAIN = 0.7
"""The same of one whose kind has not run for long: times have changed meanwhile that only it would
have shown."""

PATIENCE = 64
"""Times that a request is asked about between two looks at its plan, unless the load has changed: a
lone one about twice a tick."""

EARLY = 8
"""Patience after the first look of all, which knows stages by their weights only; it doubles from
look to look, up to ``PATIENCE``."""

TRIAL = 24
"""Patience while a kind of plan runs for the first time, until its yield is known."""

LOOKS_APART = 8
"""Times between two looks at any request's plan. Of 8 to 11 requests it is twice as many, and of 16
and more four times as many: a look takes the scheduler 5 to 30 ms, in which stages get no work, and
each of many requests has its turn seldom anyway."""

LOG_EVERY = 10.0
"""Seconds between two lines about the choice, at least."""


class _Look(NamedTuple):
    """When a request's plan was looked at, how long it stays at least, and at which load."""

    at: int
    patience: int
    load: int


NEVER = _Look(-1, 0, -1)


class BurstPolicy:
    """Chooses a ``BurstPlan`` per request.

    Args:
        steps: draft steps of the head: the most drafts of a lane.
        depth: most lanes of a request that may follow before the verdict; 0 on one device.
        margin: times what plain decoding yields that drafting must promise where several
            requests decode.
        shared: whether requests take each other's time; else each gets the plan it would have
            alone.

    Attributes:
        acceptance: recent acceptance rates by step, updated by whoever sees the verdicts.
    """

    def __init__(self, steps: int, depth: int, margin: float = 1.0, shared: bool = True) -> None:
        if not 1 <= steps <= STEPS:
            raise ValueError(f"a head of {steps} draft steps: there are 1 to {STEPS}")
        if depth < 0:
            raise ValueError(f"{depth} lanes cannot follow")
        if margin < 1:
            raise ValueError(f"a margin of {margin} would let drafting lose; 1 is the least")
        self._margin, self._shared = margin, shared
        self._search = PlanSearch(steps, depth)
        self.acceptance = StepBook()
        self._yields = YieldBook()
        self._gate = DraftingGate()
        self._promises: dict[int, float] = {}
        self._plans: dict[str, BurstPlan] = {}
        self._asked = self._looked = 0
        self._requests = 0
        self._patience = EARLY
        self._looks: dict[str, _Look] = {}
        self._newest: dict[int, BurstPlan] = {}
        self._words = ""
        self._said = (("", True), -math.inf)

    def choose(
        self, request_ids: Sequence[str], times: StageTimes, waits: bool = False
    ) -> dict[str, BurstPlan]:
        """Return the plan of every decoding request; a lane in flight keeps its own.

        Args:
            request_ids: all that decode.
            times: what the parts of a tick take now.
            waits: whether stages wait for this. A look at a plan is put off to when they work.
        """
        self._asked += 1
        self._requests = len(request_ids) if self._shared else 1
        load = load_of(self._requests)
        if len(request_ids) > 1:
            self._yields.begin()
        for request_id in request_ids:
            if request_id not in self._plans:
                # Until its turn it decodes as the newest plan at about this load says.
                self._plans[request_id] = self._newest.get(load) or self._look(request_id, times)
        if self._asked - self._looked >= LOOKS_APART * min(max(1, self._requests // 4), 4):
            due = [name for name in request_ids if self._is_due(name, waits)]
            if due:
                oldest = min(due, key=lambda name: self._looks.get(name, NEVER).at)
                self._plans[oldest] = self._look(oldest, times)
        plans = {name: self._plans[name] for name in request_ids}
        drafting = any(plan != PLAIN for plan in plans.values())
        promise = self._promises.get(load, 1.0)
        if not self._gate.choose(self._requests, promise if drafting else 1.0):
            plans = dict.fromkeys(request_ids, PLAIN)
        plain = [name for name, plan in plans.items() if plan == PLAIN]
        self.acceptance.decay_to_prior(plain, DOUBT)
        return plans

    def retired(self, tokens: int, now: float, prompts: bool = False) -> None:
        """Learn what plans really yield.

        Args:
            tokens: that a tick has retired.
            now: seconds, as the times that ``choose`` is given.
            prompts: whether the tick carried any.
        """
        self._yields.retired(tokens, now)
        self._gate.retired(tokens, now, prompts)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._yields.begin()
        self.acceptance.forget(request_id)
        self._plans.pop(request_id, None)
        self._looks.pop(request_id, None)

    def news(self, now: float) -> str | None:
        """Return words about the choice for the log if it has changed, now and then.

        Args:
            now: seconds of any clock.
        """
        (choice, said), news = self._said, (self._words, self._gate.is_open)
        if news == choice or now - said < LOG_EVERY:
            return None
        self._said = news, now
        return self._words if self._gate.is_open else f"{self._gate.describe()} ({self._words})"

    def _doubt(self, plan: BurstPlan) -> float:
        """Return what share of the best plan's yield lets a plan be tried; infinite if none."""
        follows = plan.depth > 0
        if not self._yields.is_known(follows):
            return TRIED
        return math.inf if self._yields.is_fresh(follows) else TRIED_AGAIN

    def _is_due(self, request_id: str, waits: bool) -> bool:
        """Whether a look at a request's plan is due; where stages wait for it, for long."""
        look = self._looks.get(request_id, NEVER)
        since = self._asked - look.at
        if look.load != load_of(self._requests):
            return not waits or since >= 2 * PATIENCE
        return since >= look.patience * (2 if waits else 1)

    def _look(self, request_id: str, times: StageTimes) -> BurstPlan:
        """Return the plan of a request from now on."""
        requests, before = self._requests, self._plans.get(request_id)
        self._looked = self._asked
        rates = rounded_rates(self.acceptance.rates(request_id))
        rounded, unit = rounded_times(times)
        ranked = self._search.ranked(rounded, rates, requests)
        drafting = [plan for plan in ranked.values() if plan != PLAIN]

        if before is not None and requests == 1:
            self._yields.end(before.depth > 0, self._search.value(before, rounded, rates, 1) / unit)

        def worth(plan: BurstPlan) -> float:
            factor = self._yields.factor(plan.depth > 0) if requests == 1 else 1.0
            return factor * self._search.value(plan, rounded, rates, requests)

        best = PLAIN
        if drafting:
            drafting.sort(key=worth, reverse=True)
            equals = [
                plan for plan in drafting if worth(plan) >= equal(requests) * worth(drafting[0])
            ]
            best = min(equals, key=lambda plan: plan.depth)
        if before is not None and before != PLAIN and worth(best) < BETTER * worth(before):
            best = before
        tried = None
        if requests == 1 and before is not None:
            if self._yields.is_fresh(before.depth > 0):
                # The other kind runs for a window, if it promises about as much.
                tried = next(
                    (plan for plan in drafting if worth(plan) > self._doubt(plan) * worth(best)),
                    None,
                )
            elif before != PLAIN and self._yields.is_known(before.depth == 0):
                tried = before
        if tried is not None and worth(tried) < worth(PLAIN):
            tried = None  # plain decoding would take its place, and the best one's
        best = tried or best
        margin = 1.0 if requests == 1 else self._margin
        if before is not None:
            margin = margin / BETTER if before != PLAIN else margin * BETTER
        if worth(best) < margin * worth(PLAIN):
            best = PLAIN
        if before is not None and (best.depth > 0) != (before.depth > 0):
            self._yields.begin()
        patience, load = self._patience if best != tried else TRIAL, load_of(requests)
        self._patience = min(2 * self._patience, PATIENCE)
        self._looks[request_id] = _Look(self._asked, patience, load)
        self._words = _words(best, ranked, lambda plan: worth(plan) / unit)
        self._newest[load] = best
        self._promises[load] = worth(best) / worth(PLAIN)
        return best


def _words(
    chosen: BurstPlan, ranked: dict[str, BurstPlan], worth: Callable[[BurstPlan], float]
) -> str:
    others = ", ".join(f"{name} {worth(plan):.1f}" for name, plan in ranked.items())
    return f"{describe(chosen)}: {worth(chosen):.1f} tokens/s expected ({others})"
