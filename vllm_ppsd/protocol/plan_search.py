"""The best plan of every kind, by what plans are expected to yield."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.burst_value import tokens_per_second
from vllm_ppsd.protocol.bursts import PLAIN, BurstPlan, StageTimes

EQUAL = 0.99
"""Of plans for several requests that promise this share of the best one's yield, the one of least
depth is taken: less is thrown away, and requests stay together."""

LONG = 4
"""Tokens of a following lane where the search for long lanes starts."""

JITTER = 0.02
"""Share by which a head step's time is taken to vary."""

GRAIN = 0.01
"""Inputs that differ by less than this share are taken as equal."""

REMEMBERED = 4000
"""Values of plans that are kept."""


class PlanSearch:
    """Searches the plans of a pipeline, and remembers what they are worth.

    Args:
        steps: draft steps of the head: the most drafts of a lane.
        depth: most lanes of a request that may follow before the verdict; 0 on one device.
    """

    def __init__(self, steps: int, depth: int) -> None:
        self._steps, self._depth = steps, depth
        self._values: dict[tuple[BurstPlan, StageTimes, Rates, int], float] = {}

    def value(self, plan: BurstPlan, times: StageTimes, rates: Rates, requests: int) -> float:
        """Return what a plan is expected to yield, in tokens per second of all requests."""
        key = plan, times, rates, requests
        known = self._values.get(key)
        if known is None:
            if len(self._values) >= REMEMBERED:
                self._values.clear()
            # Where a verdict comes just as stage 0 begins something, a little more or less
            # decides; no pass takes exactly as long as another. What several requests
            # yield is a mean anyway.
            about = _about(times) if requests == 1 else [times]
            values = [tokens_per_second(plan, near, rates, requests) for near in about]
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
            # Single steps may stop short of the best, so they start from two ends; with several
            # requests, whose best lanes are short, from the short one alone.
            starts = [chain]
            if requests == 1:
                starts.append(msgspec.structs.replace(long, depth=depth))
            bursts = long = max((self._climb(start, worth) for start in starts), key=worth)
            for name, plan in (("one token a lane", chain), ("bursts", bursts)):
                if name not in best or equal(requests) * worth(plan) > worth(best[name]):
                    best[name] = plan
        return dict(sorted(best.items(), key=lambda item: -worth(item[1])))

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


def equal(requests: int) -> float:
    """Return the share of the best plan's yield that is as good, for so many requests."""
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


def rounded_rates(rates: Rates) -> Rates:
    """Return rates that are the same where they hardly differ, so that values can be kept."""

    def rounded(rate: float) -> float:
        return round(50 * rate) / 50

    return Rates(
        tuple(map(rounded, rates.steps)),
        rounded(rates.reentry),
        rounded(rates.kept),
        rounded(rates.mended),
    )


def rounded_times(times: StageTimes) -> tuple[StageTimes, float]:
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
