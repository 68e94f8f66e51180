"""Recent acceptance rates, per request and overall."""

from __future__ import annotations

PRIOR = 0.72
"""Before anything was judged: about that of the head that ships."""

MEMORY = 32
"""Verdicts after which a rate has forgotten most of what was before."""


class AcceptanceBook:
    """Moving averages of hits.

    Args:
        doubt: occasions without a draft after which a rate is mostly back at the
            prior, so that a request that did badly is tried anew.

    Attributes:
        overall: the rate over all requests, where a new one starts.
    """

    def __init__(self, doubt: int) -> None:
        self._doubt = doubt
        self._rates: dict[str, float] = {}
        self.overall = PRIOR

    def judged(self, request_id: str, hit: bool) -> None:
        """Learn that a draft of a request was a hit, or a miss."""
        before = self.rate(request_id)
        self._rates[request_id] = before + (hit - before) / MEMORY
        self.overall += (hit - self.overall) / MEMORY

    def decay_to_prior(self, request_id: str) -> None:
        """A request was not let draft: doubt what is known of it a little."""
        before = self.rate(request_id)
        self._rates[request_id] = before + (PRIOR - before) / self._doubt
        self.overall += (PRIOR - self.overall) / self._doubt

    def rate(self, request_id: str) -> float:
        """Return the recent acceptance rate of a request."""
        return self._rates.get(request_id, self.overall)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._rates.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._rates)
