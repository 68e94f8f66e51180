"""A pipeline of the protocol alone: scheduler, n stages, no engine, no model.

The "model" is a function of the tokens so far, so that every stale context gives
another token: an output that equals the oracle's proves that only retired tokens
were in the context of whatever was delivered.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vllm_ppsd.protocol import (
    DiagonalBook,
    DraftBook,
    Flight,
    Lane,
    RetirementBook,
    TickGate,
    Verdict,
    flush,
    may_enter,
    steps_in_flight,
)


def true_token(tokens: tuple[int, ...]) -> int:
    """The oracle: the next token of a context."""
    return hash(("model", tokens)) % 50


def oracle(prompt: list[int], length: int) -> list[int]:
    """Plain decoding."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(true_token(tuple(tokens)))
    return tokens[len(prompt) :]


@dataclass
class Request:
    """The scheduler's view of a request."""

    id: str
    prompt: list[int]
    length: int
    output: list[int] = field(default_factory=list)
    flight: Flight = field(default_factory=lambda: Flight(0, 0, 0))
    preempted: bool = False
    drafted: bool = True

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    @property
    def done(self) -> bool:
        return len(self.output) >= self.length


@dataclass
class Tick:
    """What travels from the scheduler through the stages."""

    lanes: list[Lane]
    known: dict[str, list[int]]
    finished: list[str]
    inputs: dict[str, list[int]] = field(default_factory=dict)
    drafts: dict[str, int] = field(default_factory=dict)
    quiet: set[str] = field(default_factory=set)
    skipped: bool = False
    read: dict[str, list[tuple[int, ...] | None]] = field(default_factory=dict)


class Pipeline:
    """Runs requests through ``stages`` stages, one tick per stage at a time.

    Args:
        stages: number of stages.
        depth: drafts that may be in flight.
        draft: (context, true token) to drafted token.
        rng: source of all choices.
        hold: share of the ticks that a decoding request is kept out of, as a policy may.
        quiet: share of the lanes of decoding requests behind which nothing is drafted.
        lags: of the stages that send states back; a state is the context it was made from.
        waits: whether stage 0 waits for the newest states.
    """

    def __init__(
        self,
        stages: int,
        depth: int,
        draft: Callable[[tuple[int, ...], int], int],
        rng: random.Random,
        hold: float = 0.0,
        quiet: float = 0.0,
        lags: tuple[int, ...] = (),
        waits: bool = True,
    ) -> None:
        self.depth = depth
        self.hold = hold
        self.quiet = quiet
        self.draft = draft
        self.rng = rng
        self.requests: dict[str, Request] = {}
        self.queue_size = max(stages, steps_in_flight(depth))
        self.line: deque[Tick] = deque()  # scheduled, not yet run by stage 0
        self.between: list[Tick] = []  # run by stage 0, not yet by the last stage
        self.results: deque[tuple[Tick, dict[str, int]]] = deque()
        self.drafts = DraftBook()
        self.gate = TickGate(depth, self.drafts)
        self.verdicts: deque[list[Verdict]] = deque()
        self.retired = RetirementBook()
        self.first_kv: dict[str, dict[int, int]] = {}
        self.last_kv: dict[str, dict[int, int]] = {}
        self.truth: dict[str, list[int]] = {}
        self.lags, self.waits = lags, waits
        self.diagonal: DiagonalBook[tuple[int, ...]] = DiagonalBook(lags or (1,))
        self.passing: list[deque[Tick]] = [deque() for _ in lags]
        self.later_kv: list[dict[str, dict[int, int]]] = [{} for _ in lags]
        self.read = self.read_late = 0
        self.finished: list[str] = []
        self.hits = self.misses = self.skipped = 0

    # The scheduler ---------------------------------------------------------

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self.truth[request.id] = list(request.prompt)

    def abort(self, request_id: str) -> None:
        self.requests.pop(request_id, None)
        self.finished.append(request_id)

    def preempt(self, request: Request) -> None:
        """As vLLM: what is in flight is still delivered, the positions are redone."""
        in_flight = request.flight.in_flight
        request.flight = Flight(0, 0, in_flight, in_flight)
        request.preempted = in_flight > 0

    def schedule(self) -> bool:
        if len(self.line) + len(self.between) + len(self.results) >= self.queue_size:
            return False
        lanes, known, quiet = [], {}, set()
        for request in self.requests.values():
            flight = request.flight
            if request.preempted and flight.stale:
                continue
            request.preempted = False
            if len(request.output) + flight.unverified >= request.length:
                continue
            available = len(request.tokens) - flight.computed
            if self.hold and available <= 1 and self.rng.random() < self.hold:
                continue
            if available <= 0:
                alone = len(self.requests) == 1
                if not request.drafted or not may_enter(flight.unverified, self.depth, alone):
                    continue
                lane = Lane(request.id, flight.computed, 1, drafted=True)
                known[request.id] = []
            else:
                size = self.rng.randint(1, available)
                lane = Lane(request.id, flight.computed, size, drafted=False)
                known[request.id] = request.tokens[flight.computed : flight.computed + size]
            samples = lane.end >= len(request.tokens)
            request.flight = replace(
                flight,
                computed=flight.computed + lane.length,
                unverified=flight.unverified + samples,
                in_flight=flight.in_flight + lane.length,
            )
            lanes.append(lane)
            request.drafted = lane.length > 1 or self.rng.random() >= self.quiet
            if not request.drafted:
                quiet.add(request.id)
        if not lanes:
            return False
        self.line.append(Tick(lanes, known, self.finished, quiet=quiet))
        self.finished = []
        return True

    def receive(self) -> bool:
        if not self.results:
            return False
        tick, sampled = self.results.popleft()
        for lane in tick.lanes:
            request = self.requests.get(lane.request_id)
            if request is None:
                continue
            flight = request.flight
            stale = flight.stale > 0
            request.flight = flight = replace(
                flight,
                in_flight=flight.in_flight - lane.length,
                stale=flight.stale - lane.length if stale else 0,
            )
            token = sampled.get(lane.request_id)
            if token is None:
                continue
            request.output.append(token)
            if not stale:
                request.flight = flight = replace(flight, unverified=flight.unverified - 1)
            draft = tick.drafts.get(lane.request_id)
            if draft is not None:
                self.hits += draft == token
                self.misses += draft != token
                if draft != token and not stale and flight.unverified:
                    request.flight = flush(flight)
            if request.done:
                self.abort(request.id)
        return True

    # Stage 0 ---------------------------------------------------------------

    def run_first_stage(self) -> bool:
        if not self.line:
            return False
        if self.depth and self.gate.due(self.line[0].lanes) > len(self.verdicts):
            return False
        tick = self.line.popleft()
        for request_id in tick.finished:
            self.drafts.forget(request_id)
            self.diagonal.forget(request_id)
        for lane in tick.lanes:
            token = self.drafts.enter(lane)
            tick.inputs[lane.request_id] = tick.known[lane.request_id] if token is None else [token]
        if self.depth:
            for _ in range(self.gate.due(tick.lanes)):
                self.gate.judge(self.verdicts.popleft())
            self._catch_up()
            tick.skipped = not self.gate.start(tick.lanes)
        self.skipped += tick.skipped
        if self.lags:
            self.diagonal.enter(tick.lanes)
        for lane in tick.lanes:
            if tick.skipped:
                continue
            context = self._write(self.first_kv, tick, lane)
            self._catch_up()
            quiet = lane.request_id in tick.quiet or self.drafts.is_stale(lane)
            if self.depth and not quiet:
                drafted = self.draft(context, true_token(context))
                tick.drafts[lane.request_id] = drafted
                self.drafts.propose(lane.request_id, lane.end, drafted)
        self.between.append(tick)
        if self.lags:
            self._read_diagonals(tick)
            for passing in self.passing:
                passing.append(tick)
        return True

    # Stages that send states back -------------------------------------------

    def _read_diagonals(self, tick: Tick) -> None:
        lanes = [lane for lane in tick.lanes if not self.drafts.is_stale(lane)]
        for source in range(len(self.lags)):
            while self.waits and self.diagonal.owed(source, lanes):
                assert self._send_back(source)
            while self.rng.random() < 0.7 and self._send_back(source):
                pass
        for lane in lanes:
            tick.read[lane.request_id] = [
                self.diagonal.read(lane, source, late=not self.waits)
                for source in range(len(self.lags))
            ]

    def _send_back(self, source: int) -> bool:
        if not self.passing[source]:
            return False
        tick = self.passing[source].popleft()
        states = [self._write(self.later_kv[source], tick, lane) for lane in tick.lanes]
        may_skip = tick.skipped and self.rng.random() < 0.8
        self.diagonal.arrive(source, None if may_skip else states)
        return True

    def _check_diagonal(self, tick: Tick, lane: Lane, truth: tuple[int, ...]) -> None:
        """What a lane that counts has read was made from retired tokens only."""
        for lag, state in zip(self.lags, tick.read.get(lane.request_id, []), strict=False):
            if state is None:
                continue
            self.read += 1
            behind = lane.position + 1 - len(state)
            assert behind == lag or (not self.waits and behind == lag + 1)
            assert state == truth[: len(state)]
            self.read_late += behind > lag

    def _catch_up(self) -> None:
        """Verdicts may be there before they are due, or not."""
        while self.gate.unjudged and self.verdicts and self.rng.random() < 0.5:
            self.gate.judge(self.verdicts.popleft())

    # The last stage --------------------------------------------------------

    def run_last_stage(self) -> bool:
        if not self.between:
            return False
        tick = self.between.pop(0)
        for request_id in tick.finished:
            self.retired.forget(request_id)
        sampled: dict[str, int] = {}
        verdicts = []
        for lane in tick.lanes:
            verdict = Verdict.NONE
            counts = self.retired.counts(lane)
            # A stale lane writes to the cache too: nothing that counts may read it.
            context = self._write(self.last_kv, tick, lane)
            truth = self.truth[lane.request_id]
            if counts and lane.end >= len(truth):
                assert context == tuple(truth[: lane.end])
                self._check_diagonal(tick, lane, context)
                token = true_token(context)
                truth.append(token)
                sampled[lane.request_id] = token
                hit = self.retired.retire(lane, token, tick.drafts.get(lane.request_id, -1))
                verdict = Verdict.HIT if hit else Verdict.MISS
                assert not tick.skipped
            verdicts.append(verdict)
        if self.depth:
            self.verdicts.append(verdicts)
        self.results.append((tick, sampled))
        return True

    @staticmethod
    def _write(cache: dict[str, dict[int, int]], tick: Tick, lane: Lane) -> tuple[int, ...]:
        """Write a lane's inputs to a stage's cache; return the lane's context there."""
        memory = cache.setdefault(lane.request_id, {})
        for offset, token in enumerate(tick.inputs[lane.request_id]):
            memory[lane.position + offset] = token
        return tuple(memory.get(i, -1) for i in range(lane.end))

    def run(self, moves: int = 100_000) -> None:
        """Make random moves until nothing can move."""
        actions = [self.schedule, self.run_first_stage, self.run_last_stage, self.receive]
        for _ in range(moves):
            self.rng.shuffle(actions)
            if not any(action() for action in actions) and not (self.hold and self.requests):
                return
        raise AssertionError("the pipeline does not come to rest")
