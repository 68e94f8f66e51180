"""Where lanes stand: a lane may take the place of drafts of the lane before it.

The scheduler sends a lane before it knows whether stage 0 replaces drafts of the lane before
(``Candidate.replaces``), and places it behind all of them. It learns of replaced drafts with the
verdict. Until then every stage moves the lanes that come, by the same drafts, so that all agree.
"""

from __future__ import annotations

import msgspec

from vllm_ppsd.protocol.tick import Drafts, Lane, Tick


class PlaceBook:
    """A stage's. It must be told the drafts of a tick before a later tick enters."""

    def __init__(self) -> None:
        self._replaced: dict[str, dict[int, int]] = {}

    def propose(self, drafts: Drafts) -> None:
        """Take in what was drafted in a tick."""
        for request_id, candidates in drafts.candidates.items():
            if candidates and candidates[0].replaces:
                replaced = self._replaced.setdefault(request_id, {})
                replaced[drafts.tick] = candidates[0].replaces

    def enter(self, tick: Tick) -> Tick:
        """Return a tick that has come with its lanes where they stand."""
        for request_id in tick.left:
            self._replaced.pop(request_id, None)
        if not self._replaced:
            return tick
        lanes = tuple(self._place(lane, tick.read) for lane in tick.lanes)
        return msgspec.structs.replace(tick, lanes=lanes)

    def _place(self, lane: Lane, read: int) -> Lane:
        """Return a lane where it stands; the scheduler has read the verdict of tick ``read``."""
        replaced = self._replaced.get(lane.request_id)
        if replaced is None:
            return lane
        kept = {} if lane.is_root else {tick: n for tick, n in replaced.items() if tick > read}
        if kept:
            self._replaced[lane.request_id] = kept
        else:
            del self._replaced[lane.request_id]
        return msgspec.structs.replace(lane, position=lane.position - sum(kept.values()))

    def __len__(self) -> int:
        return len(self._replaced)
