"""What a plan yields: expected tokens per second, by the times of the parts and acceptance.

Notation: n stages, stage i takes s_i for a pass over one row; a *cycle* goes from the entry of a
root to that of the next, which the verdict on a miss lets in. Expected tokens over expected
seconds of a cycle is exact for one request (``tests/protocol/test_burst_value.py`` compares it with
a simulator), up to what stale lanes of a cycle delay in the next one. Several requests are each
followed alone, in ticks that carry what the others add to them on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.bursts import BurstPlan, StageTimes


def tokens_per_second(plan: BurstPlan, times: StageTimes, rates: Rates, requests: int = 1) -> float:
    """Return what ``requests`` requests alike yield together if all decode by one plan.

    Args:
        plan: of each.
        times: what the parts of a tick take.
        rates: acceptance rates of each.
        requests: how many decode.
    """
    if plan.depth or requests > 1:
        # One request that waits for each verdict has one stage at work at a time.
        times = times.shared()
    if not plan.depth:
        return _verified(plan, times, rates, requests)
    cycle = _Cycle(plan, times, rates)
    beside = _Beside(0.0, (0.0,) * len(times.stages), 0.0, 0.0, 0.0, 0.0)
    expected = cycle.expected(beside)
    if requests > 1:
        for _ in range(ROUNDS):
            beside = cycle.beside(expected, requests)
            expected = cycle.expected(beside)
    return requests * expected.tokens / expected.seconds


def _verified(plan: BurstPlan, times: StageTimes, rates: Rates, requests: int) -> float:
    """Draft-then-verify: the requests are dealt over the stages in groups.

    A group's cycle is its way through all stages, or the time of all groups on the busiest one.
    """
    survives = 1.0
    tokens = 1.0
    for rate in rates.reentry_chain(plan.reentry):
        survives *= rate
        tokens += survives
    stages = len(times.stages)
    share = math.ceil(requests / stages)
    groups = [share] * (requests // share) + [requests % share] * (requests % share > 0)
    ways, busy = [], [0.0] * stages
    for lanes in groups:
        work = [times.stage(i, lanes * (1 + plan.reentry)) for i in range(stages)]
        work[0] += times.continuations(plan.reentry, lanes)
        ways.append(sum(work) + (stages * times.hop if stages > 1 else 0.0))
        busy = [b + w for b, w in zip(busy, work, strict=True)]
    return sum(lanes * tokens / max(way, *busy) for lanes, way in zip(groups, ways, strict=True))


ROUNDS = 4
"""Times that what other requests add to a tick is worked out anew."""

APART = 0.25
"""How often a request that shares its ticks with others does not; fitted to the simulator."""

BLURRED = 4
"""Ticks behind which several requests are not in step any more."""

LIKELY = 1e-3
"""Lanes that a cycle reaches less often than this are not followed one by one."""


@dataclass(frozen=True, slots=True)
class _Beside:
    """What other requests add to a tick of one request.

    Attributes:
        lanes: of theirs.
        rows: of these lanes, by stage.
        roots: how many of the lanes are roots.
        root_wait: of a root for a tick without us on stage 0 to end.
        lane_wait: the same, of a lane that a verdict lets in.
        pace: least time between two lanes of ours.
    """

    lanes: float
    rows: tuple[float, ...]
    roots: float
    root_wait: float
    lane_wait: float
    pace: float


@dataclass(frozen=True, slots=True)
class _Expected:
    """Expected values of one cycle.

    Attributes:
        tokens: retired.
        seconds: it takes.
        lanes: that enter.
        rows: of all of them, by stage: each runs those that it does not know to be stale.
        tick: the time between ticks if there is always one to start.
    """

    tokens: float
    seconds: float
    lanes: float
    rows: tuple[float, ...]
    tick: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """When a lane enters stage 0, is drafted behind, and is judged; by stage when it runs."""

    start: float
    drafted: float
    verdict: float
    begins: list[float]
    ends: list[float]


class _Cycle:
    """A request whose lanes follow before the verdict.

    While lanes go on all happens at fixed times. So lanes are followed as if all did, and each is
    weighed by the probability that it is the last that counts. Behind some lanes one period is as
    the other, and the rest is a geometric series.
    """

    def __init__(self, plan: BurstPlan, times: StageTimes, rates: Rates) -> None:
        self._plan, self._times = plan, times
        self._root = _lane(rates.reentry_chain(plan.reentry), rates)
        self._following = _lane(rates.following_chain(plan.following)[1:], rates)

    def expected(self, beside: _Beside) -> _Expected:
        """Return the expected values beside others."""
        plan, times = self._plan, self._times
        sent = [self._send([], beside)]
        reached, tokens = 1.0, 0.0
        weights: list[float] = []
        right = 1.0
        regular = 2 * (plan.depth + len(self._times.stages))
        while len(weights) < 2 or (reached > LIKELY and len(weights) < regular):
            chance, got = self._following if weights else self._root
            tokens += reached * got
            weights.append(reached * (1 - chance))
            reached *= chance
            right = chance
            while sent[-1].start < sent[len(weights) - 1].verdict or len(sent) <= len(weights):
                sent.append(self._send(sent, beside))
        seconds = lanes = busy = 0.0
        stages = range(len(times.stages))
        ran = [0.0] * len(stages)
        # What is left behind the last lane goes on from it by periods.
        further = 1 / (1 - right)
        last, before = sent[len(weights) - 1], sent[max(0, len(weights) - 2 - plan.depth)]
        period = (last.verdict - before.verdict) / min(len(weights) - 1, plan.depth + 1)
        tokens += reached * self._following[1] * further
        seconds += reached * further * period
        lanes += reached * further
        busy += reached * further * (last.drafted - last.start)
        weights[-1] += reached
        for j, (weight, judged) in enumerate(zip(weights, sent, strict=False)):
            came = [s for s in sent if s.start < judged.verdict]
            seconds += weight * self._restart(judged.verdict, came, beside)
            lanes += weight * len(came)
            busy += weight * sum(s.drafted - s.start for s in came)
            for stage in stages[:-1]:
                ran[stage] += weight * sum(s.begins[stage] < judged.verdict for s in came)
            ran[-1] += weight * (j + 1)
        rows = tuple(
            1 + plan.reentry + (count + reached * further - 1) * plan.following for count in ran
        )
        tick = max(
            busy / lanes,
            (last.verdict - last.start) / max(len(stages), plan.depth + 1),
            *(times.stage(i, beside.rows[i] + rows[i] / lanes) for i in stages[1:]),
        )
        return _Expected(tokens, seconds, lanes, rows, tick)

    def beside(self, expected: _Expected, requests: int) -> _Beside:
        """Return what so many requests like this one, less this one, add to its ticks.

        Another request has a lane in our tick if it comes while the tick before runs.
        """
        share = min(1.0, expected.lanes * expected.tick / expected.seconds)
        lanes = (requests - 1) * share
        lanes *= min(1.0, lanes)
        # Who shares our ticks holds us up only where we have come apart.
        always = 1 - (1 - share) ** (requests - 1)
        apart = 1 - (1 - share) ** (requests - 1 - lanes)
        return _Beside(
            lanes,
            tuple(lanes * rows / expected.lanes for rows in expected.rows),
            lanes / expected.lanes,
            APART * always * expected.tick / 2,
            (APART * always + (1 - APART) * apart) * expected.tick / 2,
            share * expected.tick,
        )

    def _send(self, before: list[_Sent], beside: _Beside) -> _Sent:
        """Send the next lane of the chain."""
        plan, times = self._plan, self._times
        newest = before[-1] if before else None
        start = max(newest.drafted, newest.start + beside.pace) if newest else 0.0
        if len(before) > plan.depth and (due := before[-1 - plan.depth].verdict) > start:
            start = due + beside.lane_wait
        roots = beside.roots
        if newest:
            rows = plan.following
            steps = plan.reentry * min(1.0, roots)
            roots = max(1.0, roots)
        else:
            rows = 1 + plan.reentry
            steps = plan.reentry
            roots += 1
        arrives = start + times.continuations(steps, roots)
        begins: list[float] = []
        ends: list[float] = []
        for stage in range(len(times.stages)):
            begins.append(max(arrives, newest.ends[stage]) if newest else arrives)
            ends.append(begins[-1] + times.stage(stage, rows + beside.rows[stage]))
            arrives = ends[-1] + times.hop
        drafted = ends[0] + times.drafting(plan.following, 1 + beside.lanes)
        ends[-1] = max(ends[-1], drafted + times.hop)
        return _Sent(start, drafted, ends[-1] + times.hop, begins, ends)

    def _restart(self, verdict: float, came: list[_Sent], beside: _Beside) -> float:
        """Return when the next root enters, or later if it has to wait behind stale lanes."""
        times, newest = self._times, came[-1]
        others = min(1.0, beside.lanes)
        if verdict >= newest.drafted:
            start = verdict + beside.root_wait
        else:
            start = newest.drafted
            if verdict <= newest.ends[0]:  # nothing is drafted behind the stale lane alone
                start = newest.ends[0] + others * (newest.drafted - newest.ends[0])
            # Ticks of many requests differ, and so does where in one the verdict comes.
            any_time = verdict + (newest.drafted - newest.start) / 2
            start += others * min(1.0, (len(came) - 1) / BLURRED) * (any_time - start)
        late = 0.0
        arrives = start + times.continuations(self._plan.reentry)
        for stage in range(len(times.stages) - 1):
            if stage:
                runs = [s.ends[stage] for s in came if s.begins[stage] < verdict]
                late = max(late, runs[-1] - arrives if runs else 0.0)
            arrives += times.stage(stage, 1 + self._plan.reentry) + times.hop
        return start + late


def _lane(drafts: tuple[float, ...], rates: Rates) -> tuple[float, float]:
    """Return the probability that the lane behind one goes on, and the tokens that one retires.

    Args:
        drafts: rates of its drafts that are not judged yet.
        rates: the request's.
    """
    survives, tokens = 1.0, 1.0
    for rate in drafts:
        survives *= rate
        tokens += survives
    return rates.goes_on(drafts, rates.steps[0]), tokens
