"""The cost model: from the times of the parts to tokens per second and idle stages.

The formulas are for one decoding request unless said. ``tests/planning`` compares them
with a simulator that plays the protocol event by event.

Notation: n stages, stage i takes s_i for its layers (the last: with LM head and
sampler); stage 0 takes h more for the exit head, behind the hand-over; alpha is the
acceptance rate, K the drafts in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_ppsd.costs import TickCosts, layers_read, tokens_per_round
from vllm_ppsd.planning.times import Parts, Profile


@dataclass(frozen=True)
class Expected:
    """What a way of decoding is expected to do.

    Attributes:
        ms_per_token: of one request.
        tokens_per_second: of all requests together.
        verified: per stage, the share of time spent on lanes that count.
        stale: per stage, the share spent on lanes that do not.
    """

    ms_per_token: float
    tokens_per_second: float
    verified: tuple[float, ...]
    stale: tuple[float, ...]

    @property
    def idle(self) -> tuple[float, ...]:
        """Per stage, the share of time without work."""
        return tuple(1 - v - s for v, s in zip(self.verified, self.stale, strict=True))


def stage_times(partition: Sequence[int], parts: Parts) -> list[float]:
    """Return s_0 … s_{n-1} in ms, without the exit head."""
    times = [layers * parts.layer for layers in partition]
    times[-1] += parts.lm_head + parts.sampler
    return times


def plain_pipeline(
    profile: Profile, partition: Sequence[int], requests: int = 1, groups: Sequence[int] = ()
) -> Expected:
    """Plain pipeline decoding.

    A token takes sum(s_i), n - 1 hand-overs and the way through the scheduler. With more
    requests than stages the slowest stage sets the pace, or the largest group's way; as far
    as the groups keep the stages busy at once, contention slows them.

    Args:
        groups: requests that share their steps, as they arrived: vLLM keeps together what
            entered together. Without it they are dealt over the stages evenly.

    Raises:
        ValueError: ``groups`` are not so many requests.
    """
    stages = len(partition)
    if not groups:
        lanes = math.ceil(requests / stages)
        groups = (lanes,) * math.ceil(requests / lanes)
    elif sum(groups) != requests:
        raise ValueError(f"groups of {list(groups)} are not {requests} requests")
    times = [stage_times(partition, profile.at(lanes)) for lanes in groups]
    between = (stages - 1) * profile.hand_over + profile.control_of(len(groups))
    busy = [sum(by_stage) for by_stage in zip(*times, strict=True)]
    longest = max(map(sum, times))
    at_once = sum(busy) / max(longest + between, *busy) - 1
    slower = 1 + (profile.contention - 1) * min(1.0, max(0.0, at_once))
    cycle = max(longest * slower + between, *(time * slower for time in busy))
    return Expected(
        cycle,
        1000 * requests / cycle,
        verified=tuple(time * slower / cycle for time in busy),
        stale=(0.0,) * stages,
    )


def ppsd(
    profile: Profile, partition: Sequence[int], alpha: float, drafts: int, requests: int = 1
) -> Expected:
    """PPSD: a hit costs a tick; a miss costs the way through all stages and what is in it.

    One request (ticks that are sent ahead hide the scheduler's time on a hit):

    - A hit brings the next token after P, the period of ticks; a miss brings it after the
      way through all stages (``TickCosts``).
    - When the true token re-enters behind a miss, the stages behind have nothing to do:
      contention does not slow its s_0. Otherwise it makes all times longer, as far as other
      stages have work meanwhile.
    - Of the ticks that follow a miss, stage 0 has begun J before the verdict, and a stage in
      the middle those that have come to it by then; the last one skips them.

    Several requests that all draft share every tick and have nothing sent ahead: a hit
    costs a tick, a miss n of them, and the tick after the next n - 1 waits for the
    scheduler.
    """
    stages = len(partition)
    if not drafts:
        return plain_pipeline(profile, partition, requests)
    parts = profile.at(requests)
    alone = stage_times(partition, parts)
    times, head = _beside_others(alone, parts.head, profile.contention)
    read = layers_read(partition, profile.head)
    costs = TickCosts(
        times,
        head,
        profile.hand_over,
        profile.verdict,
        profile.control,
        profile.prepare,
        restart=alone[0],
        read={stage: n * parts.layer * profile.contention for stage, n in read.items()},
    )
    period = costs.period(drafts)
    if requests == 1:
        per_token = costs.per_token(alpha, drafts)
    else:
        way_round = sum(times) + costs.hand_overs + profile.control_of(stages)
        period = max(period, way_round / stages)
        per_token = period * (alpha + stages * (1 - alpha))
    busy = [times[0] + head, *times[1:]]
    came = [sum(times[:i]) + i * profile.hand_over for i in range(stages - 1)]
    stale = [
        (1 - alpha) * min(drafts, int(max(0.0, costs.loop - at) / period)) * time
        for at, time in zip(came, busy, strict=False)
    ] + [0.0]
    return Expected(
        per_token,
        1000 * requests / per_token,
        verified=tuple(min(1.0, time / per_token) for time in busy),
        stale=tuple(
            min(s, per_token - b) / per_token if s else 0.0
            for s, b in zip(stale, busy, strict=True)
        ),
    )


def _beside_others(
    times: Sequence[float], head: float, contention: float
) -> tuple[list[float], float]:
    """Return what the stages' layers and the head take while all have work.

    Of a stage's work so much is slowed as the others have of it.
    """
    busy = [times[0] + head, *times[1:]]
    slower = [
        1 + (contention - 1) * min(1.0, (sum(busy) - time) / time) if time else 1.0 for time in busy
    ]
    return [time * by for time, by in zip(times, slower, strict=True)], head * slower[0]


def draft_then_verify(
    profile: Profile, partition: Sequence[int], alpha: float, drafts: int
) -> Expected:
    """The same head without the overlap: K drafts on stage 0, then one pass over K + 1 tokens.

    (Early-exit self-speculation as in LayerSkip, arXiv 2404.16710, spread over stages.)
    """
    stages = len(partition)
    one, all_tokens = profile.at(1), profile.at(drafts + 1)
    drafting = drafts * (partition[0] * one.layer + one.head)
    times = stage_times(partition, all_tokens)
    whole = drafting + sum(times) + (stages - 1) * profile.hand_over + profile.control
    tokens = tokens_per_round(drafts, alpha)
    per_token = whole / tokens
    return Expected(
        per_token,
        1000 / per_token,
        verified=((drafting + times[0]) / whole, *(time / whole for time in times[1:])),
        stale=(0.0,) * stages,
    )


def tensor_parallel(profile: Profile, devices: int, requests: int = 1) -> Expected:
    """Every layer split over all devices, with two all-reduces a layer.

    An all-reduce is taken to cost one hand-over; weights are split perfectly.
    """
    parts = profile.at(requests)
    layers = profile.num_layers
    work = (layers * parts.layer + parts.lm_head) / devices + parts.sampler
    whole = work + 2 * layers * profile.hand_over + profile.control
    return Expected(
        whole,
        1000 * requests / whole,
        verified=(work / whole,) * devices,
        stale=(0.0,) * devices,
    )
