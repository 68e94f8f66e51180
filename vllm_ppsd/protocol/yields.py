"""How far what plans really yield is from what is expected, for one request alone.

Expected values miss what no part's time says: stages that share cores with the scheduler, say.
That differs most between plans with lanes ahead of the verdict and plans without, so both kinds
have a factor of their own, learned while such plans run.
"""

from __future__ import annotations

MEMORY = 4
"""Windows after which a factor has forgotten most of what was before."""

STALE = 12
"""Windows of one kind after which what is known of the other is doubted."""

LEAST = 24
"""Tokens that a window needs to say anything."""


class YieldBook:
    """Compares tokens per second with what was expected, window by window."""

    def __init__(self) -> None:
        self._factors: dict[bool, tuple[int, float]] = {}
        self._ages: dict[bool, int] = {}
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

    def end(self, follows: bool, expected: float) -> None:
        """End the window if it says anything: learn from it, and begin the next one.

        Args:
            follows: whether lanes followed before the verdict, by the plan of the window.
            expected: tokens per second.
        """
        if self._since is not None and self._tokens >= LEAST:
            ratio = self._tokens / (self._now - self._since) / expected
            windows, factor = self._factors.get(follows, (0, 1.0))
            windows = min(windows + 1, MEMORY) if self.is_fresh(follows) else 1
            self._factors[follows] = windows, factor + (ratio - factor) / windows
            self._ages = {follows: 0, not follows: self._ages.get(not follows, 0) + 1}
            self.begin()

    def is_known(self, follows: bool) -> bool:
        """Whether a plan of this kind has run for a window."""
        return follows in self._factors

    def is_fresh(self, follows: bool) -> bool:
        """Whether a plan of this kind has run for a window, not long ago."""
        return self.is_known(follows) and self._ages[follows] < STALE

    def factor(self, follows: bool) -> float:
        """Return what plans of a kind yield, in expected yields.

        One that has not run is taken to keep what it promises, or as much as the other.
        """
        if follows in self._factors:
            return self._factors[follows][1]
        return max([1.0, *(factor for _, factor in self._factors.values())])
