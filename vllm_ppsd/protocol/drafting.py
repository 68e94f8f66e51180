"""Stage 0: what a lane embeds whose tokens the scheduler does not know.

Behind every level stage 0 drafts the candidates that the request's next level embeds: as many and
as long as the tick's ``shape`` says, over all lanes that are alive, best first. The lane of rank r
embeds candidate r, and its parent is the lane that candidate was drafted behind.

A root needs nothing of this: its tokens are known, and the drafts behind them are made as it
enters (``Drafts.entered``).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vllm_ppsd.protocol.pruning import StaleBook
from vllm_ppsd.protocol.tick import Candidate, Drafts, Lane


class MissingDraftError(RuntimeError):
    """A drafted lane arrived on stage 0 for a position without a draft."""


STALE_INPUT = 0
"""Input token of a lane that is known to be stale: any valid token will do."""


class DraftBook(StaleBook):
    """Stage 0's: the newest candidates of every request as well."""

    def __init__(self) -> None:
        super().__init__()
        self._drafted: dict[str, tuple[int, Sequence[Candidate]]] = {}

    def propose(self, drafts: Drafts) -> None:
        """Record what was drafted in a tick."""
        for request_id, candidates in drafts.candidates.items():
            self._drafted[request_id] = (drafts.tick, candidates)

    def arrive(self, lane: Lane) -> Lane:
        candidate = self._candidate(lane)
        if candidate is not None and candidate.parent != lane.parent:
            lane = msgspec.structs.replace(lane, parent=candidate.parent)
        return super().arrive(lane)

    def inputs(self, lane: Lane) -> list[int]:
        """Return the drafted tokens of a lane that has arrived and is no root.

        Where the tick has no room for all that were drafted, they are the first ones.

        Raises:
            MissingDraftError: the lane is not stale, and its tokens were not drafted:
                scheduler and proposer disagree.
        """
        if lane.is_root:
            return []
        if self.is_stale(lane):
            return [STALE_INPUT] * lane.drafted
        candidate = self._candidate(lane)
        if candidate is None or len(candidate.drafts) < lane.drafted:
            tick, candidates = self._drafted.get(lane.request_id, (None, ()))
            raise MissingDraftError(
                f"no draft for position {lane.position} of request {lane.request_id!r}: its lane "
                f"of rank {lane.rank} carries {lane.drafted} drafts made in tick {lane.behind}; "
                f"stage 0 last drafted for it in tick {tick}, "
                f"candidates of {[len(c.drafts) for c in candidates]} tokens"
            )
        return [draft.token for draft in candidate.drafts[: lane.drafted]]

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._drafted.pop(request_id, None)

    def _candidate(self, lane: Lane) -> Candidate | None:
        tick, candidates = self._drafted.get(lane.request_id, (None, ()))
        if lane.is_root or tick != lane.behind or lane.rank >= len(candidates):
            return None
        return candidates[lane.rank]
