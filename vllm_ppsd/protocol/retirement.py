"""The scorer's side: which lanes of a tick count on the last stage.

The last stage samples every position from the full model, and a sample counts (its position is
*retired*) only if all tokens before it, in its lane and in the lane's ancestors, are retired ones.
So it runs at most one lane of a request in a tick. Every other lane is *stale*: it must leave no
trace in token buffers, random state or output.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ppsd.protocol.tick import Candidate, Draft, Lane, Outcome


class RetirementBook:
    """Remembers, per request, which lane of its next level counts, and its unjudged drafts."""

    def __init__(self) -> None:
        self._continues: dict[str, tuple[int, int, tuple[Draft, ...]]] = {}

    def counts(self, lane: Lane) -> bool:
        """Whether ``lane`` starts with a token that is retired, behind retired tokens only.

        Must be called in the order in which lanes reach the last stage.
        """
        if lane.is_root:
            return True
        behind, rank, _ = self._continues.get(lane.request_id, (None, None, ()))
        return (behind, rank) == (lane.behind, lane.rank)

    def within(self, lane: Lane, entered: Sequence[Draft] = ()) -> Sequence[Draft]:
        """Return the drafts that a lane embeds behind its first row that samples.

        Args:
            lane: the lane, which must count.
            entered: a root's own drafts.
        """
        drafts = entered if lane.is_root else self._continues[lane.request_id][2]
        return drafts[: max(0, lane.samples - 1)]

    def retire(
        self,
        lane: Lane,
        sampled: Sequence[int],
        candidates: Sequence[Candidate],
        entered: Sequence[Draft] = (),
    ) -> Outcome:
        """Judge the tokens that a lane sampled; the lane must count.

        The sample of a row is compared with the draft that the lane's next row embeds. Up to the
        first difference the samples are retired, that one included. The last of them is compared
        with the first drafts of the candidates that stand behind its row.

        Args:
            lane: the lane.
            sampled: the sampled tokens, for the ``lane.samples`` positions up to ``lane.end``.
            candidates: what stage 0 drafted behind the lane's tick for the request.
            entered: a root's own drafts.
        """
        drafts = self.within(lane, entered)
        self._continues.pop(lane.request_id, None)
        agreed = 0
        while agreed < len(drafts) and drafts[agreed].token == sampled[agreed]:
            agreed += 1
        behind = [len(drafts) - c.replaces for c in candidates if c.parent == lane.rank]
        continues = self._next(lane, sampled[agreed], candidates, len(drafts) - agreed)
        return Outcome(
            lane.request_id,
            tuple(sampled[: agreed + 1]),
            compared=agreed + (bool(candidates) if agreed == len(drafts) else 1),
            accepted=agreed + (continues is not None),
            continues=continues,
            rank=lane.rank,
            redrafted=behind[0] if behind else None,
        )

    def _next(
        self, lane: Lane, token: int, candidates: Sequence[Candidate], replaces: int
    ) -> int | None:
        """Return the rank of the lane that continues ``lane`` with ``token``."""
        for rank, candidate in enumerate(candidates):
            here = (candidate.parent, candidate.replaces) == (lane.rank, replaces)
            if here and candidate.drafts[0].token == token:
                self._continues[lane.request_id] = lane.tick, rank, candidate.drafts[1:]
                return rank
        return None

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has left the engine."""
        self._continues.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._continues)
