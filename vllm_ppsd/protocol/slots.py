"""Where the key/value entries of siblings are: slots, and copies between them.

Siblings stand at the same position, so a lane sees its ancestors through a block table of its
own. Up to ``boundary``, a multiple of the block size, it is that of the request's main blocks;
from there on it is that of a *slot*. Slot 0 is the main blocks themselves, every other slot
scratch blocks: as many as hold a partly filled block and what may be unverified
(``slot_blocks``).

- The first child of a lane continues in its parent's slot. So a request without siblings stays in
  slot 0, and nothing is ever copied.
- Every other child takes the free slot that has most of its ancestors' entries, and copies what
  that slot lacks from its parent's.
- A slot is busy from the tick of a lane in it to the tick that carries the lane's outcome to the
  stages (``Tick.retired``); so long its entries stay, whether the lane has children or not. (To
  free a slot as soon as its lane has no child would need only as many slots as a level has lanes.
  But if that lane is the one that counts, the re-entry must carry its tokens and its ancestors'
  once more, in the pass that everything waits for, and vLLM's counters of computed positions no
  longer say which entries exist. Scratch blocks are cheaper.)
- In that tick the entries of the lane that counted and of its ancestors are copied to slot 0
  first (*promoted*): from then on lanes may share them, and the prefix cache may hash them. Slots
  of lanes that are not its descendants are free. A root enters in slot 0, and all others are
  free.

All this follows from the ticks alone, with the parents that stage 0 filled in, so that all stages
and all ranks of a tensor parallel group agree, whatever verdicts each has received. Every stage
carries out every copy of every tick, run or skipped. No copy of a tick reads or writes what
another one of it writes, so their order does not matter. A lane without a slot is one that the
tick itself rules out (``StaleBook.enter``).

Invariant: if a lane counts, its slot holds, from the boundary to its position, what its own
ancestors wrote, on every stage; below the boundary the main blocks hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from vllm_ppsd.protocol.flight import steps_in_flight
from vllm_ppsd.protocol.tick import Copy, Lane, LaneId, Retired, Tick


class SlotError(RuntimeError):
    """No slot is free for a lane: the scheduler sent a level wider than it may be."""


@dataclass(slots=True)
class _Tails:
    """A request's entries behind the shared ones.

    Attributes:
        boundary: first position that is not shared.
        writers: by slot, the lanes that the entries from the boundary on are of.
        slots: of the lanes whose outcome no tick has carried to the stages yet.
    """

    boundary: int
    writers: list[list[LaneId]]
    slots: dict[LaneId, int] = field(default_factory=dict)


def slot_blocks(block_size: int, depth: int, length: int) -> int:
    """Return how many scratch blocks a slot needs.

    Block b of the sequence is in the slot's block b modulo this number.

    Args:
        block_size: of the key/value cache.
        depth: drafted ticks that may be unverified.
        length: most drafts of a lane.
    """
    return -(-(block_size - 1 + steps_in_flight(depth) * length) // block_size)


class SlotBook:
    """Says which slot each lane gets and what is copied before it runs.

    Args:
        slots: how many a request has.
        block_size: of the key/value cache; a multiple of every attention group's.
    """

    def __init__(self, slots: int, block_size: int) -> None:
        self._slots, self._block_size = slots, block_size
        self._tails: dict[str, _Tails] = {}

    def enter(self, tick: Tick) -> list[Copy]:
        """Give every lane of a tick its slot; return what to copy before the lanes run.

        Args:
            tick: with the parents of its lanes, in the order in which the scheduler made it.

        Raises:
            SlotError: there are not enough slots.
        """
        copies: list[Copy] = []
        for request_id in tick.left:
            self._tails.pop(request_id, None)
        for request_id, level in groupby(tick.lanes, key=lambda lane: lane.request_id):
            retired = tick.retired.get(request_id)
            if retired is not None:
                copies += self._promote(request_id, retired)
            for lane in level:
                if lane.is_root:
                    self._place_root(lane, keep=retired is not None)
                else:
                    copies += self._place(lane)
        return copies

    def slot(self, lane: Lane) -> int | None:
        """Return the slot of a lane of the newest tick; None if that tick rules it out."""
        return self._tails[lane.request_id].slots.get(lane.id)

    def boundary(self, request_id: str) -> int:
        """Return up to which position a request's lanes read the main blocks."""
        return self._tails[request_id].boundary

    def __len__(self) -> int:
        return len(self._tails)

    def _promote(self, request_id: str, retired: Retired) -> list[Copy]:
        """Bring the entries of a lane that counted to slot 0; free what does not continue it."""
        tails = self._tails[request_id]
        source = tails.slots[retired.tick, retired.rank]
        behind = retired.end - tails.boundary
        tails.slots = {
            lane: slot
            for lane, slot in tails.slots.items()
            if lane[0] > retired.tick and tails.writers[slot][behind][1] == retired.continues
        }
        copies = self._fill(request_id, source, 0, tails.writers[source][:behind])
        self._share(tails, retired.end)
        return copies

    def _place_root(self, lane: Lane, keep: bool) -> None:
        """Enter in the main blocks; keep track of the other slots' entries if ``keep``.

        A root that follows no outcome is of a new or preempted request, so that the scratch
        blocks hold nothing of it; or it is in the middle of its prompt.
        """
        if not keep:
            boundary = lane.position // self._block_size * self._block_size
            before = [(lane.tick, -1)] * (lane.position - boundary)
            writers: list[list[LaneId]] = [before, *([] for _ in range(1, self._slots))]
            self._tails[lane.request_id] = _Tails(boundary, writers)
        tails = self._tails[lane.request_id]
        tails.writers[0] = self._extended(tails, tails.writers[0], lane)
        tails.slots = {lane.id: 0}
        self._share(tails, lane.end - lane.drafted)

    def _place(self, lane: Lane) -> list[Copy]:
        tails = self._tails[lane.request_id]
        assert lane.behind is not None
        source = tails.slots.get((lane.behind, lane.parent))
        if source is None:
            return []
        path = tails.writers[source][: lane.position - tails.boundary]
        target, copies = source, []
        if len(tails.writers[source]) > len(path):  # a sibling continues there
            free = self._free(tails)
            if not free:
                raise SlotError(
                    f"no free slot for lane {lane.rank} of request {lane.request_id!r} in tick "
                    f"{lane.tick}: all {self._slots} are busy"
                )
            target = max(free, key=lambda slot: _common(tails.writers[slot], path))
            copies = self._fill(lane.request_id, source, target, path)
        tails.writers[target] = self._extended(tails, tails.writers[target], lane)
        tails.slots[lane.id] = target
        return copies

    def _free(self, tails: _Tails) -> list[int]:
        busy = set(tails.slots.values())
        return [slot for slot in range(self._slots) if slot not in busy]

    def _fill(self, request_id: str, source: int, target: int, path: list[LaneId]) -> list[Copy]:
        """Copy what a slot lacks of a path; nothing if it has all of it."""
        tails = self._tails[request_id]
        start = _common(tails.writers[target], path)
        if start == len(path):
            return []
        tails.writers[target] = path
        stop = tails.boundary + len(path)
        return [Copy(request_id, source, target, tails.boundary + start, stop)]

    def _share(self, tails: _Tails, promoted: int) -> None:
        """Move the boundary up to the last full block."""
        boundary = promoted // self._block_size * self._block_size
        for writers in tails.writers:
            del writers[: boundary - tails.boundary]
        tails.boundary = boundary

    @staticmethod
    def _extended(tails: _Tails, writers: list[LaneId], lane: Lane) -> list[LaneId]:
        before = writers[: lane.position - tails.boundary]
        return [*before, *[lane.id] * lane.length]


def _common(one: list[LaneId], other: list[LaneId]) -> int:
    """Return how long the common beginning of two lists is."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
