"""How far what plans really yield is from what is expected, for one request alone.

Expected values miss what no part's time says: stages that share cores with the scheduler, say.
That differs most between plans with lanes ahead of the verdict and plans without, so each depth
has a factor of its own, learned while its plans run.
"""

from __future__ import annotations

MEMORY = 4
"""Windows after which a factor has forgotten most of what was before."""

LEAST = 24
"""Tokens that a window needs to say anything."""


class YieldBook:
    """Compares tokens per second with what was expected, window by window."""

    def __init__(self) -> None:
        self._factors: dict[int, tuple[int, float]] = {}
        self._since: float | None = None
        self._now = 0.0
        self._tokens = 0

    def begin(self) -> None:
        """A window begins, with the next tokens."""
        self._since, self._tokens = None, 0

    def retired(self, tokens: int, now: float) -> None:
        """Take in tokens of the one request that decodes.

        Args:
            tokens: retired.
            now: seconds of any clock.
        """
        if self._since is None:
            self._since = now
        else:
            self._tokens += tokens
        self._now = now

    def end(self, depth: int, expected: float) -> None:
        """End the window: learn from it, and begin the next one.

        Args:
            depth: of the plan by which all tokens of the window were drafted.
            expected: tokens per second.
        """
        if self._since is not None and self._tokens >= LEAST:
            ratio = self._tokens / (self._now - self._since) / expected
            windows, factor = self._factors.get(depth, (0, 1.0))
            windows = min(windows + 1, MEMORY)
            self._factors[depth] = windows, factor + (ratio - factor) / windows
        self.begin()

    def is_known(self, depth: int) -> bool:
        """Whether a plan of this depth has run for a window."""
        return depth in self._factors

    def factor(self, depth: int) -> float:
        """Return what plans of a depth yield, in expected yields.

        One that has not run is taken to keep what it promises, or what the best of the others does.
        """
        if depth in self._factors:
            return self._factors[depth][1]
        return max([1.0, *(factor for _, factor in self._factors.values())])
