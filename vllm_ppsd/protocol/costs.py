"""What a tick takes by the number of its lanes, learned while serving."""

from __future__ import annotations

PRIOR_LANE = 0.02
"""Cost of a further lane before anything was seen, in ticks of one lane: a device that is
bound by reading weights."""

PRIOR_WEIGHT = 4.0
"""Observations that the prior counts as much as."""

MEMORY = 200
"""Ticks after which most of what was seen before is forgotten."""

OUTLIER = 3.0
"""Ticks that took so many times what was expected stood still for another reason."""


class TickCosts:
    """A straight line through (lanes, seconds), by least squares that forget.

    The prior is two points on a line through the observations' own level, so that it
    decides the slope alone, and only as long as the lanes seen hardly differ.
    """

    def __init__(self) -> None:
        self._weight = self._lanes = self._seconds = 0.0
        self._lanes_squared = self._lanes_seconds = 0.0

    def observe(self, lanes: int, seconds: float) -> None:
        """Learn that a tick of ``lanes`` lanes took ``seconds``."""
        if self._weight > PRIOR_WEIGHT and seconds > OUTLIER * self.seconds(lanes):
            return
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

    def describe(self) -> str:
        """Return the line in words, for the log."""
        if not self._weight:
            return "no tick was timed yet"
        one = 1000 * self.seconds(1)
        further = 1000 * (self.seconds(33) - self.seconds(1)) / 32
        return f"a tick of one lane takes {one:.1f} ms and a further lane {further:.2f} ms"
