"""Which plan every request decodes by: the one that is expected to yield most.

One request alone is a question of stages, links and what the head takes. With several, ticks take
longer the more rows they carry, so that bursts go first, and then drafting as a whole. Every
request gets the plan that would be best if all were like it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from vllm_ppsd.protocol.acceptance import STEPS, Rates, StepBook
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes
from vllm_ppsd.protocol.load import DOUBT
from vllm_ppsd.protocol.yields import YieldBook

EQUAL = 0.99
"""Of plans for several requests that promise this share of the best one's yield, the one of least
depth is taken: less is thrown away, and requests stay together."""

BETTER = 1.02
"""Times what a plan yields that another must promise to take its place."""

LONG = 4
"""Tokens of a following lane where the search for long lanes starts."""

TRIED = 0.85
"""Of what the best plan promises, what one must promise whose kind has never run."""

PATIENCE = 64
"""Times that a request is asked about between two looks at its plan, unless the number of requests
has changed: a lone one about twice a tick."""

EARLY = 8
"""The same behind the first look of all, which knows the parts by their weights; it doubles from
look to look."""

TRIAL = 24
"""The same where a kind of plan runs for the first time: enough to see what it yields."""

LOOKS_APART = 8
"""Times between two looks at any request's plan: with several requests a look takes the scheduler
10 ms and more."""

JITTER = 0.02
"""Share by which a head step's time is taken to vary."""

GRAIN = 0.01
"""Inputs that differ by less than this share are taken as equal."""

REMEMBERED = 4000
"""Values of plans that are kept."""

LOG_EVERY = 10.0
"""Seconds between two lines about the choice, at least."""


class _Look(NamedTuple):
    """When a request's plan was looked at, how long it stays at least, and among how many."""

    at: int
    patience: int
    requests: int


NEVER = _Look(-1, 0, 0)


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
        self._steps, self._depth, self._margin, self._shared = steps, depth, margin, shared
        self.acceptance = StepBook()
        self._yields = YieldBook()
        self._plans: dict[str, BurstPlan] = {}
        self._asked = self._looked = 0
        self._requests = 0
        self._patience = EARLY
        self._looks: dict[str, _Look] = {}
        self._newest: dict[int, BurstPlan] = {}
        self._values: dict[tuple[BurstPlan, StageTimes, Rates, int], float] = {}
        self._words = ""
        self._said = ("", -math.inf)

    def choose(
        self, request_ids: Sequence[str], times: StageTimes, waits: bool = False
    ) -> dict[str, BurstPlan]:
        """Return the plan of every decoding request; a lane in flight keeps its own.

        Args:
            request_ids: all that decode.
            times: what the parts of a tick take now.
            waits: whether stages wait for this. A look at a plan takes 10 ms and more, and is
                put off to when they work.
        """
        self._asked += 1
        self._requests = len(request_ids) if self._shared else 1
        if len(request_ids) > 1:
            self._yields.begin()
        for request_id in request_ids:
            if request_id not in self._plans:
                # Until its turn it decodes as the newest plan among so many says.
                self._plans[request_id] = self._newest.get(self._requests) or self._look(
                    request_id, times
                )
        if self._asked - self._looked >= LOOKS_APART:
            due = [name for name in request_ids if self._is_due(name, waits)]
            if due:
                oldest = min(due, key=lambda name: self._looks.get(name, NEVER).at)
                self._plans[oldest] = self._look(oldest, times)
        plain = [name for name in request_ids if self._plans[name] == PLAIN]
        self.acceptance.decay_to_prior(plain, DOUBT)
        return {name: self._plans[name] for name in request_ids}

    def retired(self, tokens: int, now: float) -> None:
        """Learn what plans really yield.

        Args:
            tokens: of a request, retired at once.
            now: seconds, as the times that ``choose`` is given.
        """
        self._yields.retired(tokens, now)

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
        words, said = self._said
        if self._words == words or now - said < LOG_EVERY:
            return None
        self._said = self._words, now
        return self._words

    def value(self, plan: BurstPlan, times: StageTimes, rates: Rates, requests: int) -> float:
        """Return what a plan is expected to yield, in tokens per second of all requests."""
        key = plan, times, rates, requests
        known = self._values.get(key)
        if known is None:
            if len(self._values) >= REMEMBERED:
                self._values.clear()
            # Where a verdict comes just as stage 0 begins something, a little more or less
            # decides; no pass takes exactly as long as another.
            values = [tokens_per_second(plan, near, rates, requests) for near in _about(times)]
            known = self._values[key] = sum(values) / len(values)
        return known

    def ranked(self, times: StageTimes, rates: Rates, requests: int) -> dict[str, BurstPlan]:
        """Return the best plan of every kind, best first; ``plain`` is among them.

        Args:
            times: what the parts of a tick take.
            rates: acceptance rates of each request.
            requests: how many decode.
        """

        def worth(plan: BurstPlan) -> float:
            return self.value(plan, times, rates, requests)

        best: dict[str, BurstPlan] = {"plain": PLAIN}
        long = PLAIN
        verified = [BurstPlan(k, 1, 0) for k in range(1, self._steps)]
        if verified:
            long = best["draft, then verify"] = max(verified, key=worth)
        long = BurstPlan(long.reentry, min(LONG, self._steps), 0)
        for depth in self._depths(times):
            chain = BurstPlan(0, 1, depth)
            # Single steps may stop short of the best, so they start from two ends.
            starts = (chain, msgspec.structs.replace(long, depth=depth))
            bursts = long = max((self._climb(start, worth) for start in starts), key=worth)
            for name, plan in (("one token a lane", chain), ("bursts", bursts)):
                if name not in best or _equal(requests) * worth(plan) > worth(best[name]):
                    best[name] = plan
        return dict(sorted(best.items(), key=lambda item: -worth(item[1])))

    def _is_due(self, request_id: str, waits: bool) -> bool:
        """Whether a look at a request's plan is due; where stages wait for it, for long."""
        look = self._looks.get(request_id, NEVER)
        since = self._asked - look.at
        if look.requests != self._requests:
            return not waits or since >= 2 * PATIENCE
        return since >= look.patience * (2 if waits else 1)

    def _look(self, request_id: str, times: StageTimes) -> BurstPlan:
        """Return the plan of a request from now on."""
        requests, before = self._requests, self._plans.get(request_id)
        patience = self._patience
        self._patience = min(2 * patience, PATIENCE)
        self._looked = self._asked
        rates = _rounded_rates(self.acceptance.rates(request_id))
        rounded, unit = _rounded_times(times)
        ranked = self.ranked(rounded, rates, requests)
        drafting = [plan for plan in ranked.values() if plan != PLAIN]

        if before is not None and requests == 1:
            self._yields.end(before.depth > 0, self.value(before, rounded, rates, 1) / unit)

        def worth(plan: BurstPlan) -> float:
            factor = self._yields.factor(plan.depth > 0) if requests == 1 else 1.0
            return factor * self.value(plan, rounded, rates, requests)

        best = PLAIN
        if drafting:
            drafting.sort(key=worth, reverse=True)
            equals = [
                plan for plan in drafting if worth(plan) >= _equal(requests) * worth(drafting[0])
            ]
            best = min(equals, key=lambda plan: plan.depth)
        if before is not None and before != PLAIN and worth(best) < BETTER * worth(before):
            best = before
        if requests == 1 and before is not None and self._yields.is_known(before.depth > 0):
            # The other kind runs for a window, if it promises about as much.
            untried = [plan for plan in drafting if not self._yields.is_known(plan.depth > 0)]
            tried = next((plan for plan in untried if worth(plan) > TRIED * worth(best)), best)
            if tried is not best:
                best, patience = tried, TRIAL
        margin = 1.0 if requests == 1 else self._margin
        if before is not None:
            margin = margin / BETTER if before != PLAIN else margin * BETTER
        if worth(best) < margin * worth(PLAIN):
            best = PLAIN
        self._looks[request_id] = _Look(self._asked, patience, requests)
        self._words = _words(best, ranked, lambda plan: worth(plan) / unit)
        self._newest[requests] = best
        return best

    def _depths(self, times: StageTimes) -> list[int]:
        """Return how many lanes may follow: as many as stages or until the first verdict."""
        stages = len(times.stages)
        if stages == 1 or not self._depth:
            return []
        loop = sum(times.stages) + stages * times.hop
        full = math.ceil(loop / (times.stages[0] + times.first_step))
        return sorted({min(self._depth, depth) for depth in (1, stages - 1, stages, full)})

    def _climb(self, plan: BurstPlan, worth: Callable[[BurstPlan], float]) -> BurstPlan:
        """Return the best plan of this depth that single steps up or down lead to."""
        while True:
            better = max(self._near(plan), key=worth)
            if worth(better) <= worth(plan):
                return plan
            plan = better

    def _near(self, plan: BurstPlan) -> Iterator[BurstPlan]:
        for reentry in range(plan.reentry - 1, plan.reentry + 2):
            for following in range(plan.following - 1, plan.following + 2):
                if 0 <= reentry < self._steps and 1 <= following <= self._steps:
                    yield BurstPlan(reentry, following, plan.depth)


def _equal(requests: int) -> float:
    return EQUAL if requests > 1 else 1.0


def _about(times: StageTimes) -> list[StageTimes]:
    """Return times with a head that is a little faster, and one that is a little slower."""
    return [
        msgspec.structs.replace(
            times,
            first_step=times.first_step * factor,
            continuation=times.continuation * factor,
        )
        for factor in (1 - JITTER, 1 + JITTER)
    ]


def _rounded_rates(rates: Rates) -> Rates:
    def rounded(rate: float) -> float:
        return round(50 * rate) / 50

    return Rates(
        tuple(map(rounded, rates.steps)),
        rounded(rates.reentry),
        rounded(rates.kept),
        rounded(rates.mended),
    )


def _rounded_times(times: StageTimes) -> tuple[StageTimes, float]:
    """Return times in units of a pass through all stages, rounded, and that unit."""
    unit = sum(times.stages)

    def rounded(seconds: float) -> float:
        share = seconds / unit
        return math.exp(GRAIN * round(math.log(share) / GRAIN)) if share > 1e-4 else 0.0

    return StageTimes(
        tuple(rounded(s) for s in times.stages),
        rounded(times.first_step),
        rounded(times.continuation),
        round(times.row, 2),
        rounded(times.hop),
        round(times.beside, 2),
    ), unit


def _words(
    chosen: BurstPlan, ranked: dict[str, BurstPlan], worth: Callable[[BurstPlan], float]
) -> str:
    others = ", ".join(f"{name} {worth(plan):.1f}" for name, plan in ranked.items())
    return f"{describe(chosen)}: {worth(chosen):.1f} tokens/s expected ({others})"


def describe(plan: BurstPlan) -> str:
    """Return a plan in words."""
    if plan == PLAIN:
        return "no drafts"
    root = f"{plan.reentry} drafts behind a true token"
    if not plan.depth:
        return f"{root}, then the verdict"
    return f"{root}, {plan.depth} lanes of {plan.following} ahead of the verdict"
