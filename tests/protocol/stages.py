"""Stages of the protocol alone, with the key/value cache that each would have.

Every lane's tokens are known here from the candidates themselves, whatever the books under test
say; each read of a lane that runs is checked against them.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from protocol.language import VOCABULARY, entries, extend, next_token

from vllm_ppsd.protocol import (
    Candidate,
    Copy,
    Draft,
    DraftBook,
    Drafts,
    Judgement,
    Lane,
    Outcome,
    RetirementBook,
    Shape,
    SlotBook,
    StaleBook,
    Tick,
    TickGate,
    slot_blocks,
)

GARBAGE = -1

State = tuple[int, int]
"""What a later stage sends back of a lane: its last position, and the entry there."""


@dataclass(slots=True, eq=False)
class Node:
    """What is true of a lane: ``path`` is the entries of its own tokens and its ancestors'."""

    tick: int
    rank: int
    path: list[int]
    parent: Node | None
    root: int


@dataclass(slots=True, eq=False)
class Passing:
    """A tick on its way through the stages.

    Attributes:
        tick: with the parents, once stage 0 has it.
        known: by request, the entries of a root's known tokens and those before.
        promoted: by request, the true entries that the main blocks must hold.
        new: how many positions of a new or preempted request's blocks are cached ones.
        rows: the lanes that the stages so far have run.
        read: by request, the states of later stages that stage 0 read for its lane.
    """

    tick: Tick
    known: dict[str, list[int]]
    promoted: dict[str, list[int]]
    new: dict[str, int]
    nodes: dict[tuple[str, int], Node] = field(default_factory=dict)
    rows: list[Lane] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    slots: dict[tuple[str, int], int | None] = field(default_factory=dict)
    boundaries: dict[str, int] = field(default_factory=dict)
    drafts: Drafts | None = None
    read: dict[str, list[State | None]] = field(default_factory=dict)


class Stage:
    """A stage's cache: by request and slot, the entry of each position."""

    def __init__(self, slots: int, rng: random.Random) -> None:
        self.slots, self.rng = slots, rng
        self.line: deque[Passing] = deque()
        self.cache: dict[str, list[list[int]]] = {}
        self.lanes_run = 0

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


class EarlyStage(Stage):
    """A stage before the last; the last stage's judgements wait in ``judgements``."""

    def __init__(self, slots: int, rng: random.Random, depth: int, book: StaleBook) -> None:
        super().__init__(slots, rng)
        self.depth, self.book = depth, book
        self.gate = TickGate(depth, book)
        self.judgements: deque[Judgement] = deque()
        self.heard: dict[str, tuple[int, int, int | None]] = {}
        self.started: deque[dict[str, int]] = deque()
        self.roots: dict[str, int] = {}
        self.skipped = self.pruned = 0

    def enter(self, passing: Passing) -> None:
        for request_id, retired in passing.tick.retired.items():
            self._note(request_id, retired.tick, retired.rank, retired.continues)
        passing.tick = self.book.enter(passing.tick)

    def hear(self) -> None:
        judgement = self.judgements.popleft()
        self.gate.judge(judgement)
        self.started.popleft()
        for request_id, outcome in judgement.outcomes.items():
            self._note(request_id, judgement.tick, outcome.rank, outcome.continues)

    def catch_up(self) -> None:
        """Judgements may be there before they are due, or not."""
        while self.judgements and self.rng.random() < 0.5:
            self.hear()

    def start(self, passing: Passing, lanes: list[Lane]) -> None:
        """Run those of ``lanes`` that nothing heard so far rules out, and only those."""
        tick = passing.tick
        alive = [lane for lane in lanes if not self._ruled_out(passing, lane)]
        for lane in tick.lanes:
            if lane.is_root:
                self.roots[lane.request_id] = lane.tick
        runs = self.gate.start(tick)
        passing.rows = [lane for lane in lanes if not self.book.is_stale(lane)]
        assert passing.rows == alive, "other lanes run than those that may count"
        assert runs or not alive
        assert not runs or alive or len(lanes) < len(tick.lanes), "a tick of stale lanes runs"
        self.started.append({lane.request_id: self.roots[lane.request_id] for lane in alive})
        self.skipped += not alive
        self.pruned += len(tick.lanes) - len(alive)
        self.copy(passing)
        for lane in alive:
            self.run(passing, lane)
        for lane in tick.lanes if alive else ():
            if lane not in alive and self.rng.random() < 0.3:
                self.spoil(passing, lane)
        self.check_promoted(passing)

    def _note(self, request_id: str, tick: int, rank: int, continues: int | None) -> None:
        if tick > self.heard.get(request_id, (-1,))[0]:
            self.heard[request_id] = tick, rank, continues

    def _ruled_out(self, passing: Passing, lane: Lane) -> bool:
        """The same by the lanes' true parents."""
        node = passing.nodes.get((lane.request_id, lane.rank))
        if node is None:
            return True
        tick, rank, continues = self.heard.get(lane.request_id, (-1, 0, None))
        if tick < node.root:
            return False
        child = node
        while node.tick > tick:
            assert node.parent is not None
            child, node = node, node.parent
        return (node.tick, node.rank, child.rank) != (tick, rank, continues)


class MiddleStage(EarlyStage):
    def step(self) -> Passing | None:
        if not self.line:
            return None
        passing = self.line.popleft()
        self.enter(passing)
        self.catch_up()
        self.start(passing, passing.rows)
        return passing


class FirstStage(EarlyStage):
    """Drafts: every token is the true one with probability ``acceptance``.

    Args:
        slots, depth, block_size, acceptance: as in the pipeline's settings.
        longest: most drafts of a lane.
    """

    def __init__(
        self,
        slots: int,
        rng: random.Random,
        depth: int,
        block_size: int,
        longest: int,
        acceptance: float,
    ) -> None:
        self.drafts = DraftBook()
        super().__init__(slots, rng, depth, self.drafts)
        self.placement = SlotBook(slots, block_size)
        self.slot_size = block_size * slot_blocks(block_size, depth, longest)
        self.acceptance = acceptance
        self.drafted: dict[str, tuple[int, list[tuple[Node, list[int]]]]] = {}
        self.copied = 0

    def step(self) -> Passing | None:
        if not self.line:
            return None
        passing = self.line[0]
        if passing.drafts is None:
            self.enter(passing)
            self._embed(passing)
        due = self.gate.due(passing.tick)
        assert due == self._due(passing), "the gate waits for other judgements than it must"
        if due > len(self.judgements):
            return None
        self.line.popleft()
        for _ in range(due):
            self.hear()
        self.catch_up()
        self.start(passing, list(passing.tick.lanes))
        self.catch_up()
        self._draft(passing)
        return passing

    def _due(self, passing: Passing) -> int:
        """How many judgements must come in before at most ``depth`` ticks are unverified."""
        if not any(
            not lane.is_root and not self._ruled_out(passing, lane) for lane in passing.tick.lanes
        ):
            return 0
        current = [any(self.roots[i] == root for i, root in ids.items()) for ids in self.started]
        due = 0
        while sum(current[due:]) > self.depth:
            due += 1
        return due

    def _embed(self, passing: Passing) -> None:
        tick = passing.tick
        passing.drafts = Drafts(tick.number, {}, {})
        passing.copies = self.placement.enter(tick)
        self.copied += len(passing.copies)
        for lane in tick.lanes:
            slot = self.placement.slot(lane)
            passing.slots[lane.request_id, lane.rank] = slot
            boundary = self.placement.boundary(lane.request_id)
            passing.boundaries[lane.request_id] = boundary
            assert not slot or lane.end - boundary <= self.slot_size, "a slot is too small"
            node = self._root(passing, lane) if lane.is_root else self._follow(lane)
            if node is not None:
                passing.nodes[lane.request_id, lane.rank] = node
                assert slot is not None or self._ruled_out(passing, lane)

    def _root(self, passing: Passing, lane: Lane) -> Node:
        path = passing.known[lane.request_id]
        burst = self._burst(path[-1], lane.drafted)
        if burst:
            passing.drafts.entered[lane.request_id] = tuple(Draft(token) for token in burst)
        return Node(lane.tick, lane.rank, entries(path, burst), None, lane.tick)

    def _follow(self, lane: Lane) -> Node | None:
        tick, candidates = self.drafted.get(lane.request_id, (None, []))
        embedded = self.drafts.inputs(lane)
        if tick != lane.behind:
            assert self.drafts.is_stale(lane)
            return None
        parent, tokens = candidates[lane.rank]
        assert embedded == tokens or self.drafts.is_stale(lane)
        return Node(lane.tick, lane.rank, entries(parent.path, tokens), parent, parent.root)

    def _draft(self, passing: Passing) -> None:
        tick = passing.tick
        alive: dict[str, list[Node]] = {}
        for lane in passing.rows:
            if not self.drafts.is_stale(lane):
                node = passing.nodes[lane.request_id, lane.rank]
                alive.setdefault(lane.request_id, []).append(node)
        for request_id, nodes in alive.items():
            shape = tick.shape(request_id)
            if not shape.width:
                continue
            candidates = self._candidates(nodes, shape)
            self.drafted[request_id] = tick.number, candidates
            proposed = tuple(
                Candidate(tuple(Draft(token) for token in tokens), node.rank)
                for node, tokens in candidates
            )
            passing.drafts.candidates[request_id] = proposed
        self.drafts.propose(passing.drafts)

    def _candidates(self, nodes: list[Node], shape: Shape) -> list[tuple[Node, list[int]]]:
        tried: dict[Node, set[int]] = {}
        result = []
        for _ in range(shape.width):
            node = nodes[int(self.rng.random() * len(nodes))]
            used = tried.setdefault(node, set())
            token = self._guess(node.path[-1])
            while token in used:
                token = (token + 1) % VOCABULARY
            used.add(token)
            context = extend(node.path[-1], token)
            result.append((node, [token, *self._burst(context, shape.length - 1)]))
        return result

    def _burst(self, context: int, length: int) -> list[int]:
        tokens = []
        for _ in range(length):
            tokens.append(self._guess(context))
            context = extend(context, tokens[-1])
        return tokens

    def _guess(self, context: int) -> int:
        wrong = self.rng.random() >= self.acceptance
        return (next_token(context) + wrong) % VOCABULARY


class LastStage(Stage):
    """Runs, of every request, the one lane that counts."""

    def __init__(self, slots: int, rng: random.Random) -> None:
        super().__init__(slots, rng)
        self.retired = RetirementBook()
        self.counted = 0
        self.newest: dict[str, tuple[int, int]] = {}

    def step(self) -> tuple[Passing, Judgement] | None:
        if not self.line:
            return None
        passing = self.line.popleft()
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
        return passing, Judgement(tick.number, outcomes)

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
