"""The proposer's side: which draft a lane embeds on stage 0.

Stage 0 drafts one token per lane, for the position after the lane. If the
scheduler sends that position on before it knows the true token, stage 0 embeds
its own draft; if it sends a known token, the draft is forgotten.
"""

from __future__ import annotations


class MissingDraftError(RuntimeError):
    """A drafted lane arrived on stage 0 for a position without a draft."""


class DraftBook:
    """The newest draft of every request: one position, one token."""

    def __init__(self) -> None:
        self._drafts: dict[str, tuple[int, int]] = {}

    def propose(self, request_id: str, position: int, token: int) -> None:
        """Record ``token`` as the draft for ``position`` of a request."""
        self._drafts[request_id] = (position, token)

    def take(self, request_id: str, position: int) -> int:
        """Return the draft for ``position`` of a request.

        Raises:
            MissingDraftError: the newest draft is for another position, or none
                exists: scheduler and proposer disagree about what is in flight.
        """
        drafted = self._drafts.get(request_id)
        if drafted is None or drafted[0] != position:
            raise MissingDraftError(
                f"no draft for position {position} of request {request_id!r}; the "
                f"newest is {drafted}. The scheduler sent a position whose token it "
                "does not know, and stage 0 drafted none."
            )
        return drafted[1]

    def forget(self, request_id: str) -> None:
        """Drop the draft of a request that has left the engine."""
        self._drafts.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._drafts)
