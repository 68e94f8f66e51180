"""The scorer's side: which lanes of a tick count on the last stage.

The last stage samples every position from the full model, and a sample counts (its position is
*retired*) only if all tokens before it in the lane and its ancestors are retired ones. Otherwise
the lane is *stale*: it must leave no trace in token buffers, random state or output.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ppsd.protocol.tick import Candidate, Lane, Outcome


class RetirementBook:
    """Remembers, per request, which lane of its next tick would count."""

    def __init__(self) -> None:
        self._continues: dict[str, tuple[int, int]] = {}

    def counts(self, lane: Lane) -> bool:
        """Whether ``lane`` has only retired tokens in its context.

        Must be called in the order in which lanes reach the last stage.
        """
        if lane.is_root:
            return True
        return self._continues.get(lane.request_id) == (lane.behind, lane.rank)

    def retire(
        self, lane: Lane, sampled: Sequence[int], candidates: Sequence[Candidate]
    ) -> Outcome:
        """Judge the tokens that a lane sampled; the lane must count.

        Args:
            lane: the lane.
            sampled: the sampled tokens, for the positions up to ``lane.end``.
            candidates: what stage 0 drafted behind the lane's tick for the request.
        """
        (token,) = sampled
        ranks = (
            rank
            for rank, candidate in enumerate(candidates)
            if candidate.parent == lane.rank and candidate.drafts[0].token == token
        )
        continues = next(ranks, None)
        if continues is None:
            self._continues.pop(lane.request_id, None)
        else:
            self._continues[lane.request_id] = (lane.tick, continues)
        return Outcome(
            lane.request_id,
            (token,),
            compared=int(bool(candidates)),
            accepted=int(continues is not None),
            continues=continues,
            rank=lane.rank,
        )

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._continues.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._continues)
