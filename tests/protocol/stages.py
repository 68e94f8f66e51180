"""Stages of the protocol alone, with the key/value cache that each would have.

Every lane's tokens are known here from the candidates themselves, whatever the books under test
say; each read of a lane that runs is checked against them.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from protocol.language import extend, next_token

from vllm_ppsd.protocol import (
    Copy,
    Drafts,
    Lane,
    Outcome,
    PlaceBook,
    RetirementBook,
    Tick,
    Verdict,
)

GARBAGE = -1

State = tuple[int, int]
"""What a later stage sends back of a lane: its last position, and the entry there."""


@dataclass(slots=True, eq=False)
class Node:
    """What is true of a lane: ``path`` is the entries of its own tokens and its ancestors', and
    ``drafts`` how many of its tokens a lane behind may replace."""

    tick: int
    rank: int
    path: list[int]
    parent: Node | None
    root: int
    drafts: int = 0


@dataclass(slots=True, eq=False)
class Passing:
    """A tick on its way through the stages.

    Attributes:
        tick: with the parents, once stage 0 has it, and the lanes where they stand.
        sent: as the scheduler made it.
        known: by request, the entries of a root's known tokens and those before.
        promoted: by request, the true entries that the main blocks must hold.
        new: how many positions of a new or preempted request's blocks are cached ones.
        rows: the lanes that the stages so far have run.
        read: by request, the states of later stages that stage 0 read for its lane.
    """

    sent: Tick
    known: dict[str, list[int]]
    promoted: dict[str, list[int]]
    new: dict[str, int]
    tick: Tick = field(init=False)
    nodes: dict[tuple[str, int], Node] = field(default_factory=dict)
    rows: list[Lane] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    slots: dict[tuple[str, int], int | None] = field(default_factory=dict)
    boundaries: dict[str, int] = field(default_factory=dict)
    drafts: Drafts | None = None
    read: dict[str, list[State | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tick = self.sent


class Stage:
    """A stage's cache: by request and slot, the entry of each position."""

    def __init__(self, slots: int, rng: random.Random) -> None:
        self.slots, self.rng = slots, rng
        self.line: deque[Passing] = deque()
        self.cache: dict[str, list[list[int]]] = {}
        self.places = PlaceBook()
        self.lanes_run = 0

    def place(self, passing: Passing) -> None:
        """Every stage finds out by itself where lanes stand; all must agree."""
        placed = self.places.enter(passing.sent)
        if passing.tick is passing.sent:
            passing.tick = placed
        assert [lane.position for lane in placed.lanes] == [
            lane.position for lane in passing.tick.lanes
        ]

    def copy(self, passing: Passing) -> None:
        for request_id, cached in passing.new.items():
            kept = self.cache[request_id][0][:cached] if cached else []
            self.cache[request_id] = [kept, *([] for _ in range(1, self.slots))]
        # All reads, then all writes, in any order: copies of a tick do not touch each other.
        pieces = [
            (copy, self.cache[copy.request_id][copy.source][copy.start : copy.stop])
            for copy in passing.copies
        ]
        if self.rng.random() < 0.5:
            pieces.reverse()
        for copy, piece in pieces:
            self.write(self.cache[copy.request_id][copy.target], copy.start, piece)

    def run(self, passing: Passing, lane: Lane) -> None:
        """A lane reads what its block table shows, and writes its own entries."""
        node = passing.nodes[lane.request_id, lane.rank]
        slots, number = self.cache[lane.request_id], passing.slots[lane.request_id, lane.rank]
        assert number is not None, "a lane without a slot runs"
        slot = slots[number]
        boundary = min(passing.boundaries[lane.request_id], lane.position)
        read = slots[0][:boundary] + slot[boundary : lane.position]
        assert read == node.path[: lane.position], f"stale entries: {lane}"
        self.write(slot, lane.position, node.path[lane.position :])
        self.lanes_run += 1

    def spoil(self, passing: Passing, lane: Lane) -> None:
        """Where a stage runs the whole batch, a stale lane writes as well."""
        slot = passing.slots[lane.request_id, lane.rank]
        if slot is not None:
            self.write(self.cache[lane.request_id][slot], lane.position, [GARBAGE] * lane.length)

    def check_promoted(self, passing: Passing) -> None:
        for request_id, path in passing.promoted.items():
            assert self.cache[request_id][0][: len(path)] == path, "main blocks are not final"

    @staticmethod
    def write(slot: list[int], start: int, piece: list[int]) -> None:
        if len(slot) < start:
            slot += [GARBAGE] * (start - len(slot))
        slot[start : start + len(piece)] = piece


class LastStage(Stage):
    """Runs, of every request, the one lane that counts."""

    def __init__(self, slots: int, rng: random.Random) -> None:
        super().__init__(slots, rng)
        self.retired = RetirementBook()
        self.counted = 0
        self.newest: dict[str, tuple[int, int]] = {}

    def step(self) -> tuple[Passing, Verdict] | None:
        if not self.line:
            return None
        passing = self.line.popleft()
        self.place(passing)
        self.places.propose(passing.drafts)
        tick = passing.tick
        for request_id in tick.left:
            self.retired.forget(request_id)
        self.copy(passing)
        outcomes: dict[str, Outcome] = {}
        counted: set[str] = set()
        for lane in tick.lanes:
            counts = self.retired.counts(lane)
            assert counts == self._is_true(passing, lane), "not the lane that counts"
            if not counts:
                if passing.rows and self.rng.random() < 0.3:
                    self.spoil(passing, lane)
                continue
            assert lane.request_id not in counted, "two lanes of a request count"
            assert lane in passing.rows, "a stage has not run a lane that counts"
            counted.add(lane.request_id)
            self.run(passing, lane)
            if lane.samples:
                outcomes[lane.request_id] = self._retire(passing, lane)
        self.counted += len(counted)
        self.check_promoted(passing)
        return passing, Verdict(tick.number, outcomes)

    def _is_true(self, passing: Passing, lane: Lane) -> bool:
        """Whether its first token is the newest one retired, behind retired ones only."""
        if lane.is_root:
            return True
        node = passing.nodes.get((lane.request_id, lane.rank))
        true = self.newest.get(lane.request_id)
        return node is not None and true == (lane.position, node.path[lane.position])

    def _retire(self, passing: Passing, lane: Lane) -> Outcome:
        node, drafts = passing.nodes[lane.request_id, lane.rank], passing.drafts
        sampled = [next_token(context) for context in node.path[-lane.samples :]]
        candidates = drafts.candidates.get(lane.request_id, ())
        entered = drafts.entered.get(lane.request_id, ())
        outcome = self.retired.retire(lane, sampled, candidates, entered)
        end = lane.end - lane.samples + len(outcome.tokens)
        self.newest[lane.request_id] = end, extend(node.path[end - 1], outcome.tokens[-1])
        return outcome
