"""The cost model: from the times of the parts to tokens per second and idle stages.

The formulas are for one decoding request unless said; ``simulate`` plays the same
protocol event by event, and ``tests/planning`` holds one against the other.

Notation: n stages, stage i takes s_i for its layers (the last: with LM head and
sampler); stage 0 takes h more for the exit head, behind the hand-over; alpha is the
acceptance rate, K the drafts in flight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vllm_ppsd.planning.times import Parts, Profile
from vllm_ppsd.speedup import tokens_per_round


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

    - P = max(s_0 + h + prepare, s_1, …, s_{n-1}, L / (K + 1)) is the period of ticks;
      L = sum(s_i) + hand-overs + verdict is when the verdict on a tick is in, and at most
      K + 1 ticks may be unverified.
    - A multi-depth head that reads stage k waits until that stage's layers are done with
      the tick k before, and the states have come back as a verdict does: with it P is at
      least (s_0 + h + prepare + the hand-overs and layers of stages 1 to k + the verdict's
      way) / (k + 1). The verdict on a tick waits for the draft behind it, so P is at least
      (all that + the draft's way and the verdict's) / (k + K + 1), too. Between equal stages
      on a fast link both are less than the first term: the wait costs nothing. On a slow
      link it costs what more drafts in flight would gain.
    - A hit brings the next token after P. A miss brings it after L' = sum(s_i) +
      hand-overs + control, plus W, the rest of the stale tick that stage 0 is in when
      the token re-enters. When it does, the stages behind have nothing to do: contention
      does not slow its s_0.
    - Of the ticks that follow a miss, stage 0 has begun J = min(K, floor(L / F)) before
      the verdict, F = s_0 + h + prepare, and a stage in the middle those that have come
      to it by then; the last one skips them. Stage 0 does not draft behind a tick whose
      layers end after the verdict.
    - Contention makes all these times longer, as far as other stages have work meanwhile.

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
    hand_overs = (stages - 1) * profile.hand_over
    loop = sum(times) + hand_overs + profile.verdict
    first = times[0] + head + profile.prepare
    period = max(
        first,
        *times[1:],
        loop / (drafts + 1),
        *_feedback_periods(profile, partition, parts.layer, first, drafts),
    )
    begun = min(drafts, int(loop / first))
    if requests == 1:
        trip = alone[0] + sum(times[1:]) + hand_overs + profile.control
        layers_end = begun * first + times[0]
        stale_end = layers_end + (head if layers_end < loop else 0.0)
        rest = max(0.0, stale_end + profile.prepare - trip)
        per_token = alpha * period + (1 - alpha) * (trip + rest)
    else:
        way_round = sum(times) + hand_overs + profile.control_of(stages)
        period = max(period, way_round / stages)
        per_token = period * (alpha + stages * (1 - alpha))
    busy = [times[0] + head, *times[1:]]
    came = [sum(times[:i]) + i * profile.hand_over for i in range(stages - 1)]
    stale = [
        (1 - alpha) * min(drafts, int(max(0.0, loop - at) / period)) * time
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


def _feedback_periods(
    profile: Profile, partition: Sequence[int], layer: float, first: float, drafts: int
) -> Iterator[float]:
    """Yield least periods of ticks for every later stage that the head reads.

    Args:
        layer: ms of one decoder layer, alone.
        first: ms that stage 0 is taken by a tick.
        drafts: in flight.
    """
    if profile.head is None:
        return
    for stage, end in enumerate(accumulate(partition)):
        if end in profile.head.deeper_layers:
            layers = sum(partition[1 : stage + 1]) * layer * profile.contention
            drafted = first + stage * profile.hand_over + layers + profile.verdict
            yield drafted / (stage + 1)
            judged = drafted + profile.hand_over + profile.verdict
            yield judged / (stage + drafts + 1)


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
