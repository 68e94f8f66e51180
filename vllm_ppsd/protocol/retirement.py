"""The scorer's side: which lanes of a tick count on the last stage.

A *lane* is one request's row in a tick. The last stage samples every position
from the full model, and a sample counts (the position is *retired*) only if the
lane's input token is the token that was retired for that position. Otherwise the
lane is *stale*: it must leave no trace in token buffers, random state or output.

The last stage never sees which token stage 0 embedded; it sees the drafts. A
drafted lane embeds the draft that the lane before it carried, so it counts
exactly if that lane counted and its draft was a hit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lane:
    """One request's row in a tick.

    Attributes:
        request_id: the engine's id of the request.
        position: position of the lane's first input token in the sequence.
        length: number of input tokens (1 for decode, more for prefill).
        drafted: True if the input token was not known to the scheduler, so that
            stage 0 embedded its own draft. A drafted lane has length 1.
    """

    request_id: str
    position: int
    length: int
    drafted: bool

    @property
    def end(self) -> int:
        """Position of the token that this lane samples."""
        return self.position + self.length


class RetirementBook:
    """Remembers, per request, for which position a drafted lane would count."""

    def __init__(self) -> None:
        self._hit_position: dict[str, int] = {}

    def counts(self, lane: Lane) -> bool:
        """Whether ``lane`` has only retired tokens in its context.

        Must be called in the order in which lanes reach the last stage.
        """
        if not lane.drafted:
            return True
        return self._hit_position.get(lane.request_id) == lane.position

    def retire(self, lane: Lane, token: int, draft: int) -> bool:
        """Record the token retired by a lane that counts; return True for a hit.

        Args:
            lane: the lane that sampled; it must count.
            token: the sampled token, for position ``lane.end``.
            draft: what stage 0 drafted for that position; negative if nothing.
        """
        hit = token == draft
        if hit:
            self._hit_position[lane.request_id] = lane.end
        else:
            self._hit_position.pop(lane.request_id, None)
        return hit

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._hit_position.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._hit_position)
