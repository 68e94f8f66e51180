"""What a tick takes by the number of its lanes, and what its parts take, learned while serving."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ppsd.protocol.bursts import StageTimes
from vllm_ppsd.protocol.tick import PartTimes, StagePass, Tick

PRIOR_LANE = 0.02
"""Cost of a further lane before anything was seen, in ticks of one lane: a device that is
bound by reading weights."""

PRIOR_WEIGHT = 4.0
"""Observations that the prior counts as much as."""

MEMORY = 200
"""Ticks after which most of what was seen before is forgotten."""

OUTLIER = 3.0
"""Ticks that took so many times what was expected stood still for another reason."""

NO_OUTLIERS = 8
"""So many of them in a row are what ticks take now."""


class TickCosts:
    """A straight line through (lanes, seconds), by least squares that forget.

    The prior is two points on a line through the observations' own level, so that it
    decides the slope alone, and only as long as the lanes seen hardly differ.
    """

    def __init__(self) -> None:
        self._weight = self._lanes = self._seconds = 0.0
        self._lanes_squared = self._lanes_seconds = 0.0
        self._refused = 0

    def observe(self, lanes: int, seconds: float) -> None:
        """Learn that a tick of ``lanes`` lanes took ``seconds``."""
        if self._weight > PRIOR_WEIGHT and seconds > OUTLIER * self.seconds(lanes):
            self._refused += 1
            if self._refused < NO_OUTLIERS:
                return
        self._refused = 0
        keep = 1 - 1 / MEMORY
        self._weight = self._weight * keep + 1
        self._lanes = self._lanes * keep + lanes
        self._seconds = self._seconds * keep + seconds
        self._lanes_squared = self._lanes_squared * keep + lanes * lanes
        self._lanes_seconds = self._lanes_seconds * keep + lanes * seconds

    def seconds(self, lanes: float) -> float:
        """Return what a tick of ``lanes`` lanes is expected to take.

        Before anything was observed, in ticks of one lane.
        """
        if not self._weight:
            return 1 + PRIOR_LANE * (lanes - 1)
        mean_lanes, mean = self._lanes / self._weight, self._seconds / self._weight
        # Around the means: least squares with a prior slope of PRIOR_LANE ticks a lane.
        prior = PRIOR_LANE * mean / (1 + PRIOR_LANE * (mean_lanes - 1))
        spread = self._lanes_squared - self._weight * mean_lanes**2
        together = self._lanes_seconds - self._weight * mean_lanes * mean
        slope = max(0.0, (together + PRIOR_WEIGHT * prior) / (spread + PRIOR_WEIGHT))
        # No tick is cheaper than a tenth of the mean: the line ends somewhere.
        return max(0.1 * mean, mean + slope * (lanes - mean_lanes))

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return self._weight > 0

    def describe(self) -> str:
        """Return the line in words, for the log."""
        if not self._weight:
            return "no tick was timed yet"
        one = 1000 * self.seconds(1)
        further = 1000 * (self.seconds(33) - self.seconds(1)) / 32
        return f"a tick of one lane takes {one:.1f} ms and a further lane {further:.2f} ms"


PART_MEMORY = 50
"""Ticks after which a part's time has mostly forgotten what was before."""


class PartCosts:
    """What the parts of a tick take: stages measure their own, and the round trip says the rest.

    Args:
        stages: what a pass takes each stage, in passes of stage 0, by weights, until it has been
            measured.
        head: what a draft step takes before any was measured, in passes of stage 0.

    Attributes:
        ticks: what a tick takes by its rows, where stage 0 is not measured. A tick's time is no
            measure where it is: longer lanes are drafted for longer, which is no row's cost.
    """

    def __init__(self, stages: Sequence[float], head: float) -> None:
        if not stages or min(stages) <= 0 or head < 0:
            raise ValueError(f"stages of {list(stages)} and a head of {head} passes of stage 0")
        self._shares = tuple(share / stages[0] for share in stages)
        self._head = head
        self.ticks = TickCosts()
        self._rows = TickCosts()
        self._layers = self._first = self._continuation = self._rest = self._beside = _Part()
        self._later = [_Part()] * (len(stages) - 1)

    def observe_parts(self, tick: Tick, seconds: PartTimes) -> None:
        """Learn what a tick took stage 0.

        Args:
            tick: without anything of a prompt.
            seconds: it took.
        """
        rows = tick.rows
        beside = self.is_measured and not tick.runs_alone(0)
        if beside and len(tick.lanes) == 1:
            expected = self.times().stage(0, rows)
            self._beside = self._beside.seen(seconds.layers / expected)
        else:
            layers = seconds.layers / (self._beside.mean(1.0) if beside else 1.0)
            self._rows.observe(rows, layers)
            self._layers = self._layers.seen(layers / (1 + self._row * (rows - 1)))
        if seconds.first_step:
            self._first = self._first.seen(seconds.first_step)
        if seconds.continuation:
            self._continuation = self._continuation.seen(seconds.continuation)

    def observe_pass(self, seen: StagePass) -> None:
        """Learn what a tick without anything of a prompt took another stage."""
        if not self.is_measured:
            return
        factor = 1.0 if seen.alone else self._beside.mean(1.0)
        one = seen.seconds / factor / (1 + self._row * (seen.rows - 1))
        self._later[seen.stage - 1] = self._later[seen.stage - 1].seen(one)

    def observe_round_trip(self, rows: int, drafts: int, seconds: float) -> None:
        """Learn the time from a lone root's entry into idle stages to its result.

        What the stages and the head do not explain is the links' and the scheduler's.

        Args:
            rows: of the root.
            drafts: of them, made before its layers.
            seconds: it took.
        """
        if not self.is_measured:
            return
        times = self.times()
        work = sum(times.stage(i, rows) for i in range(len(self._shares)))
        self._rest = self._rest.seen(max(0.0, seconds - work - times.continuations(drafts)))

    @property
    def is_measured(self) -> bool:
        """Whether ``times`` are in seconds."""
        return self._rows.is_known

    def times(self) -> StageTimes:
        """Return what the parts are expected to take, in seconds; before any was measured, in
        passes of stage 0."""
        layers = self._layers.mean(1.0)
        first = self._first.mean(self._head * layers)
        later = zip(self._later, self._shares[1:], strict=True)
        return StageTimes(
            (layers, *(part.mean(layers * share) for part, share in later)),
            first,
            self._continuation.mean(first),
            self._row,
            self._rest.mean(0.0) / len(self._shares),
            max(1.0, self._beside.mean(1.0)),
        )

    def describe(self) -> str:
        """Return the times in words, for the log."""
        times = self.times()
        stages = ", ".join(f"{1000 * seconds:.2f}" for seconds in times.stages)
        first, further, hop = (
            f"{1000 * seconds:.2f} ms"
            for seconds in (times.first_step, times.continuation, times.hop)
        )
        return (
            f"stages take {stages} ms ({times.beside:.2f} times that beside others), the head "
            f"{first} and {further} a further draft, a hop {hop}, a further row "
            f"{times.row:.3f} of a pass"
        )

    @property
    def _row(self) -> float:
        """What a further row costs, in passes over one row."""
        by_rows = self._rows if self.is_measured else self.ticks
        one = by_rows.seconds(1)
        return (by_rows.seconds(33) - one) / 32 / one


class _Part:
    """A mean that forgets, and takes no notice of what stood still for another reason."""

    def __init__(self, weight: float = 0.0, mean: float = 0.0, refused: int = 0) -> None:
        self._weight, self._mean, self._refused = weight, mean, refused

    def seen(self, seconds: float) -> _Part:
        if self._weight > PRIOR_WEIGHT and seconds > OUTLIER * self._mean > 0:
            refused = self._refused + 1
            if refused < NO_OUTLIERS:
                return _Part(self._weight, self._mean, refused)
            # It starts anew, far from what things take now.
            return _Part(1.0, seconds)
        weight = min(self._weight + 1, float(PART_MEMORY))
        return _Part(weight, self._mean + (seconds - self._mean) / weight)

    def mean(self, prior: float) -> float:
        return self._mean if self._weight else prior
