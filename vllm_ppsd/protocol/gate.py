"""Whether several requests draft at all: both ways run by turns, and the faster one stays.

Of many requests the parts of a tick do not tell what drafts cost: the scheduler, detokenising and
a server's front end take time for every row and token, and often the cores of the stages. So what
a tick takes is not asked; tokens per second are counted with drafts and without, at loads that are
about the same.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 1.5
"""Seconds that are counted at a time, at least."""

RESULTS = 24
"""Results of ticks without prompts that are, at least."""

BEFORE = 4
"""Results after a change that are not: of ticks that were sent before."""

MEMORY = 4
"""Windows after which a rate has forgotten most of what was before."""

STALE = 24
"""Windows of one way after which what is known of the other is doubted, and it runs for one; twice
as many each time that it has lost again, up to ``STALEST``."""

STALEST = 16 * STALE

BETTER = 1.02
"""Times the rate of one way that the other must have to take its place."""


@dataclass
class _Rate:
    """Tokens per second of one way at one load, and how many windows of the other came since."""

    tokens: float
    windows: int = 1
    age: int = 0


class DraftingGate:
    """Lets all requests draft, or none, by what has yielded more tokens a second at a load."""

    def __init__(self) -> None:
        self._rates: dict[tuple[int, bool], _Rate] = {}
        self._opened: dict[int, bool] = {}
        self._stale: dict[int, int] = {}
        self._now: tuple[int, bool] | None = None
        self._before: float | None = None
        self._restart()

    def choose(self, requests: int, promise: float) -> bool:
        """Return whether requests draft now.

        Args:
            requests: how many decode.
            promise: what drafting is expected to yield, in yields of plain decoding; 1 or less
                where no request would draft.
        """
        if requests <= 1 or promise <= 1.0:
            self._now = None
            return True
        load = load_of(requests)
        is_open = self._opened.get(load, True)
        if self._now != (load, is_open):
            self._now = load, is_open
            self._restart()
        elif self._results >= RESULTS and self._seconds >= WINDOW:
            is_open = self._next(load, is_open)
        return is_open

    def retired(self, tokens: int, now: float, prompts: bool) -> None:
        """A tick's result is in; only from one without prompts to the next one time is counted.

        Args:
            tokens: of all requests that it has retired.
            now: seconds of any clock.
            prompts: whether it carried any.
        """
        before, self._before = self._before, None if prompts else now
        self._seen += 1
        if prompts or before is None or self._seen <= BEFORE:
            return
        self._results += 1
        self._tokens += tokens
        self._seconds += now - before

    @property
    def is_open(self) -> bool:
        """Whether requests draft now."""
        return self._now is None or self._now[1]

    def describe(self) -> str:
        """Return why no request drafts, in words."""
        assert self._now is not None
        load = self._now[0]
        least = 3 * 2**load // 4
        drafting, plain = self._rates[load, True], self._rates.get((load, False))
        without = f"{plain.tokens:.0f} without" if plain else "without them not known yet"
        return (
            f"no request of {least} to {2 * least - 1} drafts: {drafting.tokens:.0f} "
            f"tokens/s with drafts, {without}"
        )

    def _next(self, load: int, is_open: bool) -> bool:
        """Take in a window that is full; return what the next one is of."""
        seen = self._tokens / self._seconds
        mine, other = self._rates.get((load, is_open)), self._rates.get((load, not is_open))
        stale = self._stale.get(load, STALE)
        tried = mine is None or mine.age >= stale
        if mine is None or tried:
            mine = self._rates[load, is_open] = _Rate(seen)
        else:
            mine.windows = min(mine.windows + 1, MEMORY)
            mine.tokens += (seen - mine.tokens) / mine.windows
        mine.age = 0
        if other is not None:
            other.age += 1
        lost = other is not None and other.tokens > BETTER * mine.tokens
        chosen = is_open
        if lost or other is None or other.age >= stale:
            chosen = not is_open
        if tried and other is not None:
            self._stale[load] = min(2 * stale, STALEST) if lost else STALE
        self._opened[load] = chosen
        self._now = load, chosen
        self._restart(changed=chosen != is_open)
        return chosen

    def _restart(self, changed: bool = True) -> None:
        self._seen = 0 if changed else BEFORE
        self._results = self._tokens = 0
        self._seconds = 0.0
        self._before = None


def load_of(requests: int) -> int:
    """Return a number for about so many requests: 0 for one, 1 for two.

    Loads begin at 3, 6, 12, 24 and so on: servers are often held to powers of 2, and a request
    that ends before the next one comes must not change the load.
    """
    return (requests * 2 // 3).bit_length()
