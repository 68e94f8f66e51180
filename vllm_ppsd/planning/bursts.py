"""What the burst policy would choose in a layout, by the times of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.files import read_json_object
from vllm_ppsd.planning.model import stage_times
from vllm_ppsd.planning.times import Profile
from vllm_ppsd.protocol.acceptance import PRIOR_STEPS, Rates, bounded
from vllm_ppsd.protocol.burst_policy import BurstPolicy
from vllm_ppsd.protocol.bursts import PLAIN, StageTimes, describe
from vllm_ppsd.protocol.plan_search import PlanSearch
from vllm_ppsd.training.record import BY_STEP
from vllm_ppsd.training.rounds import ORIGIN


def measured_rates(folder: Path) -> Rates | None:
    """Return the acceptance by step that was measured of a head; None if none was.

    Raises:
        PPSDConfigError: what stands there is no list of rates.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    known: Any = read_json_object(path).get(BY_STEP)
    if known is None:
        return None
    if not (isinstance(known, list) and known and all(_is_rate(rate) for rate in known)):
        raise PPSDConfigError(
            f"{BY_STEP} in {path} is {known!r}; it must be a list of numbers from 0 to 1, step 1 "
            "first"
        )
    rates = tuple(bounded(float(rate)) for rate in known)
    return Rates(rates, rates[min(1, len(rates) - 1)])


def assumed_rates(alpha: float) -> Rates:
    """Return rates by step for a head whose first step is right with probability ``alpha``."""
    factor = alpha / PRIOR_STEPS[0]
    rates = tuple(bounded(rate * factor) for rate in PRIOR_STEPS)
    return Rates(rates, rates[1])


def burst_times(profile: Profile, partition: Sequence[int]) -> StageTimes:
    """Return what the parts of a tick take in a layout, in ms; a continuation as a step 1."""
    one, two = profile.at(1), profile.at(2)
    stages = stage_times(partition, one)
    row = sum(stage_times(partition, two)) / sum(stages) - 1
    count = len(partition)
    links = (count - 1) * profile.hand_over + profile.control
    return StageTimes(tuple(stages), one.head, one.head, max(0.0, row), links / count)


def burst_choice(
    profile: Profile,
    partition: Sequence[int],
    steps: int,
    rates: Rates,
    depth: int,
    requests: int = 1,
) -> tuple[str, float]:
    """Return the plan that is expected to yield most, in words, and its speedup over plain.

    Args:
        profile: times on the machine.
        partition: decoder layers per stage.
        steps: of the head.
        rates: its acceptance by step.
        depth: most lanes that may follow before a verdict.
        requests: how many decode at once.
    """
    policy, times = BurstPolicy(steps, depth), burst_times(profile, partition)
    policy.acceptance.overall = rates
    chosen = policy.choose([str(i) for i in range(requests)], times)["0"]
    search = PlanSearch(steps, depth)
    values = [search.value(plan, times, rates, requests) for plan in (chosen, PLAIN)]
    return describe(chosen), values[0] / values[1]


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
