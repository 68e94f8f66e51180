"""Stages before the last: they draft, prune and wait. The true parents check what they do."""

from __future__ import annotations

import random
from collections import deque

from protocol.language import VOCABULARY, entries, extend, next_token
from protocol.stages import Node, Passing, Stage

from vllm_ppsd.protocol import (
    Candidate,
    Draft,
    DraftBook,
    Drafts,
    Lane,
    Shape,
    SlotBook,
    StaleBook,
    TickGate,
    Verdict,
    slot_blocks,
)


class EarlyStage(Stage):
    """A stage before the last; the last stage's verdicts wait in ``verdicts``."""

    def __init__(self, slots: int, rng: random.Random, depth: int, book: StaleBook) -> None:
        super().__init__(slots, rng)
        self.depth, self.book = depth, book
        self.gate = TickGate(depth, book)
        self.verdicts: deque[Verdict] = deque()
        self.heard: dict[str, tuple[int, int, int | None]] = {}
        self.started: deque[tuple[int, dict[str, int]]] = deque()
        self.roots: dict[str, int] = {}
        self.skipped = self.pruned = 0

    def enter(self, passing: Passing) -> None:
        self.place(passing)
        for request_id, retired in passing.tick.retired.items():
            self._note(request_id, retired.tick, retired.rank, retired.continues)
        passing.tick = self.book.enter(passing.tick)

    def hear(self) -> None:
        verdict = self.verdicts.popleft()
        self.gate.judge(verdict)
        self.started.popleft()
        for request_id, outcome in verdict.outcomes.items():
            self._note(request_id, verdict.tick, outcome.rank, outcome.continues)

    def catch_up(self) -> None:
        """Verdicts may be there before they are due, or not."""
        while self.verdicts and self.rng.random() < 0.5:
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
        roots = {lane.request_id: self.roots[lane.request_id] for lane in alive}
        self.started.append((tick.number, roots))
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
        self.places.propose(passing.drafts)
        return passing


class FirstStage(EarlyStage):
    """Drafts: every token is the true one with probability ``acceptance``.

    Args:
        slots, depth, block_size, acceptance, redraft: as in the pipeline's settings.
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
        redraft: float,
    ) -> None:
        self.drafts = DraftBook()
        super().__init__(slots, rng, depth, self.drafts)
        self.placement = SlotBook(slots, block_size)
        self.slot_size = block_size * slot_blocks(block_size, depth, longest)
        self.acceptance, self.redraft = acceptance, redraft
        self.drafted: dict[str, tuple[int, list[tuple[Node, list[int], int]]]] = {}
        self.copied = 0

    def step(self) -> Passing | None:
        if not self.line:
            return None
        passing = self.line[0]
        if passing.drafts is None:
            self.enter(passing)
            self._embed(passing)
        due = self.gate.due(passing.tick)
        assert due == self._due(passing), "the gate waits for other verdicts than it must"
        if due > len(self.verdicts):
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
        """How many verdicts must come in before at most ``depth`` ticks are unverified, and all
        that the scheduler has read are in."""
        read = sum(number <= passing.tick.read for number, _ in self.started)
        if not any(
            not lane.is_root and not self._ruled_out(passing, lane) for lane in passing.tick.lanes
        ):
            return read
        current = [any(self.roots[i] == root for i, root in ids.items()) for _, ids in self.started]
        due = read
        while sum(current[due:]) > self.depth:
            due += 1
        return due

    def _embed(self, passing: Passing) -> None:
        tick = passing.tick
        passing.drafts = Drafts(tick.number, {}, {})
        if self.slots > 1:
            passing.copies = self.placement.enter(tick)
            self.copied += len(passing.copies)
        for lane in tick.lanes:
            slot, boundary = 0, 0
            if self.slots > 1:
                slot = self.placement.slot(lane)
                boundary = self.placement.boundary(lane.request_id)
            passing.slots[lane.request_id, lane.rank] = slot
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
        return Node(lane.tick, lane.rank, entries(path, burst), None, lane.tick, lane.drafted)

    def _follow(self, lane: Lane) -> Node | None:
        tick, candidates = self.drafted.get(lane.request_id, (None, []))
        embedded = self.drafts.inputs(lane)
        if tick != lane.behind:
            assert self.drafts.is_stale(lane)
            return None
        parent, tokens, replaces = candidates[lane.rank]
        tokens = tokens[: lane.length]
        assert embedded == tokens or self.drafts.is_stale(lane)
        path = entries(parent.path[: len(parent.path) - replaces], tokens)
        return Node(lane.tick, lane.rank, path, parent, parent.root, lane.length - 1)

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
                Candidate(tuple(Draft(token) for token in tokens), node.rank, replaces)
                for node, tokens, replaces in candidates
            )
            passing.drafts.candidates[request_id] = proposed
        self.drafts.propose(passing.drafts)
        self.places.propose(passing.drafts)

    def _candidates(self, nodes: list[Node], shape: Shape) -> list[tuple[Node, list[int], int]]:
        if nodes[0].drafts and self.rng.random() < self.redraft:
            return [self._replacing(nodes[0], shape.length)]
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
            result.append((node, [token, *self._burst(context, shape.length - 1)], 0))
        return result

    def _replacing(self, node: Node, length: int) -> tuple[Node, list[int], int]:
        """Draft otherwise at one of the lane's drafts."""
        replaces = self.rng.randint(1, node.drafts)
        before, draft = node.path[-replaces - 1], node.path[-replaces]
        token = self._guess(before)
        while extend(before, token) == draft:
            token = (token + 1) % VOCABULARY
        return node, [token, *self._burst(extend(before, token), length - 1)], replaces

    def _burst(self, context: int, length: int) -> list[int]:
        tokens = []
        for _ in range(length):
            tokens.append(self._guess(context))
            context = extend(context, tokens[-1])
        return tokens

    def _guess(self, context: int) -> int:
        wrong = self.rng.random() >= self.acceptance
        return (next_token(context) + wrong) % VOCABULARY
