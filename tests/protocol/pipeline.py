"""A pipeline of the protocol alone: scheduler, n stages, no engine, no model.

The scheduler's counters are kept as vLLM's ``AsyncScheduler`` keeps them. Everything moves at
random moments.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace

from protocol.early import EarlyStage, FirstStage, MiddleStage
from protocol.request import Request, Settings
from protocol.stages import LastStage, Passing

from vllm_ppsd.protocol import (
    Flight,
    Lane,
    Shape,
    StaleBook,
    TickBook,
    Verdict,
    flush,
    may_enter,
    steps_in_flight,
    without_replaced,
)


class Pipeline:
    """Runs requests; ``counts`` says what happened."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.settings, self.rng = settings, rng
        slots, depth = settings.slots, settings.depth
        longest = max(settings.burst, settings.reentry)
        self.first = FirstStage(
            slots,
            rng,
            depth,
            settings.block_size,
            longest,
            settings.acceptance,
            settings.redraft,
        )
        self.middle = [
            MiddleStage(slots, rng, depth, StaleBook()) for _ in range(settings.stages - 2)
        ]
        self.last = LastStage(slots, rng)
        self.early: list[EarlyStage] = [self.first, *self.middle]
        self.book = TickBook(slots)
        self.requests: dict[str, Request] = {}
        self.left: list[str] = []
        self.in_flight, self.read = 0, -1
        self.results: deque[tuple[Passing, Verdict, dict[str, Request]]] = deque()
        self.owners: deque[dict[str, Request]] = deque()
        self.counts: Counter[str] = Counter()
        self.queue_size = max(settings.stages, steps_in_flight(depth))
        self.moves = [self.schedule, self.receive, self.finish_tick]
        self.moves += [lambda k=k: self.pass_on(k) for k in range(len(self.early))]

    # The scheduler ---------------------------------------------------------

    def add(self, request: Request) -> None:
        self.requests[request.id] = request

    def add_random(self, request_id: str, prompt: int = 9, length: int = 12) -> Request:
        rng = self.rng
        tokens = [rng.randrange(50) for _ in range(rng.randint(1, prompt))]
        request = Request(request_id, tokens, rng.randint(1, length))
        self.add(request)
        return request

    def abort(self, request_id: str) -> None:
        if self.requests.pop(request_id).blocks:
            self.left.append(request_id)

    def preempt(self, request: Request) -> None:
        """As vLLM: what is in flight is still delivered, the positions are redone.

        Some of its blocks may still be in the prefix cache.
        """
        if not request.blocks or request.preempted:
            return
        flight = request.flight
        final = self.book.cacheable(request.id, flight.computed - flight.unverified)
        self._restart(request, self.rng.randint(0, min(final, len(request.path) - 1)))
        request.drops &= flight.stale > 0
        self.counts["preemptions"] += 1

    def reset(self) -> None:
        """As vLLM's ``reset_prefix_cache``: what is in flight is dropped, not waited for."""
        for request in self.requests.values():
            request.cached = 0
            if not request.blocks or request.preempted:
                continue
            self._restart(request, 0)
            request.drops = True
            self.counts["resets"] += 1
            self.counts["dropped lanes"] += request.flight.stale > 0

    def _restart(self, request: Request, cached: int) -> None:
        flight = request.flight
        self.book.restart(request.id)
        request.flight = Flight(0, 0, flight.in_flight, flight.in_flight)
        request.blocks, request.preempted, request.cached = False, True, cached

    def schedule(self) -> bool:
        if self.in_flight >= self.queue_size:
            return False
        lanes: list[Lane] = []
        no_draft: list[str] = []
        known, new, shapes = {}, {}, {}
        for request in self.requests.values():
            flight = request.flight
            if request.preempted and flight.stale and not request.drops:
                continue
            request.preempted = False
            if len(request.output) + flight.unverified >= request.length:
                continue
            if not request.blocks:
                flight = replace(flight, computed=request.cached)
            level = self._level(request, flight)
            if not level:
                continue
            lane = level[0]
            if not request.blocks:
                request.blocks, new[request.id] = True, request.cached
                request.cached = 0
            if lane.is_root:
                known[request.id] = request.path[: lane.end - lane.drafted]
            request.flight = replace(
                flight,
                computed=flight.computed + lane.length,
                unverified=flight.unverified + lane.samples,
                in_flight=flight.in_flight + lane.length,
            )
            lanes += level
            self.counts["lanes"] += len(level)
            self.counts["siblings"] += len(level) - 1
            self.counts["chunks"] += not lane.samples
            request.drafted = self.settings.depth > 0 and (
                not lane.samples or self.rng.random() >= self.settings.no_draft
            )
            if not request.drafted:
                no_draft.append(request.id)
            shapes[request.id] = Shape(
                self._size(self.settings.width), self._size(self.settings.burst)
            )
        if not lanes:
            return False
        tick = self.book.tick(lanes, no_draft, left=self.left, shapes=shapes, read=self.read)
        self.left = []
        promoted = {r.id: self._promoted(r) for r in self.requests.values() if r.blocks}
        self.first.line.append(Passing(tick, known, promoted, new))
        self.owners.append({lane.request_id: self.requests[lane.request_id] for lane in lanes})
        self.in_flight += 1
        self.counts["ticks"] += 1
        return True

    def _level(self, request: Request, flight: Flight) -> tuple[Lane, ...]:
        settings, rng = self.settings, self.rng
        available = len(request.path) - flight.computed
        if settings.hold and available <= 1 and rng.random() < settings.hold:
            return ()
        if available <= 0:
            unverified = self.book.unverified(request.id)
            alone = len(self.requests) == 1
            if not request.drafted or not may_enter(unverified, settings.depth, alone):
                return ()
            return self._cut(request, self.book.level(request.id, flight.computed))
        known = rng.randint(1, available) if settings.chunked else available
        drafted = self._size(settings.reentry, least=0) if known == available else 0
        samples = drafted + 1 if known == available else 0
        lane = self.book.lane(request.id, flight.computed, known + drafted, known, samples)
        return (lane,)

    def _cut(self, request: Request, level: tuple[Lane, ...]) -> tuple[Lane, ...]:
        """Send fewer tokens than were drafted, as where other requests have filled the tick."""
        (longest, *siblings), rng = level, self.rng
        if siblings or longest.length == 1 or rng.random() >= self.settings.cut:
            return level
        length = rng.randint(1, longest.length - 1)
        self.counts["shortened"] += 1
        return (self.book.lane(request.id, longest.position, length, 0, length),)

    def _size(self, most: int, least: int = 1) -> int:
        return self.rng.randint(least, most) if self.settings.vary and most > least else most

    def _promoted(self, request: Request) -> list[int]:
        """The entries that the prefix cache may hash from this tick on."""
        final = request.flight.computed - request.flight.unverified
        return request.path[: self.book.cacheable(request.id, final)]

    def receive(self) -> bool:
        if not self.results:
            return False
        passing, verdict, owners = self.results.popleft()
        self.in_flight -= 1
        self.read = passing.tick.number
        for lane in passing.sent.lanes:
            request = owners[lane.request_id]
            if lane.rank == 0 and self.requests.get(lane.request_id) is request:
                self._update(request, passing, lane, verdict)
        return True

    def _update(self, request: Request, passing: Passing, lane: Lane, verdict: Verdict) -> None:
        flight = request.flight
        stale = flight.stale > 0
        flight = replace(
            flight,
            in_flight=flight.in_flight - lane.length,
            stale=flight.stale - lane.length if stale else 0,
        )
        outcome = verdict.outcomes.get(request.id)
        assert outcome is not None or stale or not lane.samples, "a lane that counts is lost"
        if outcome is not None and not (stale and request.drops):
            request.append(outcome.tokens)
            if not stale:
                flight = replace(
                    flight,
                    computed=flight.computed - outcome.overwritten,
                    unverified=flight.unverified - len(outcome.tokens),
                )
                self.counts["overwritten"] += outcome.overwritten
                self.book.judge(lane, outcome)
            if outcome.missed and not stale and flight.unverified:
                flight, request.drops = flush(flight), False
            elif outcome.continues is not None and not stale:
                replaced = lane.samples - len(outcome.tokens)
                flight = without_replaced(flight, replaced)
                self.counts["replaced"] += replaced
            self.counts["outcomes"] += 1
            self.counts["hits"] += outcome.accepted
            self.counts["misses"] += outcome.missed
            self.counts["cuts"] += len(outcome.tokens) < lane.samples
            self.counts["runners-up"] += (outcome.continues or 0) > 0
        request.flight = flight
        if request.done:
            self.abort(request.id)

    # The stages ------------------------------------------------------------

    def pass_on(self, number: int) -> bool:
        """Stage ``number`` takes its next tick, if it may."""
        passing = self.early[number].step()
        if passing is None:
            return False
        following = (*self.early, self.last)[number + 1]
        following.line.append(passing)
        return True

    def finish_tick(self) -> bool:
        result = self.last.step()
        if result is None:
            return False
        passing, verdict = result
        for stage in self.early:
            stage.verdicts.append(verdict)
        self.results.append((passing, verdict, self.owners.popleft()))
        return True

    # Random moves ----------------------------------------------------------

    def disturb(self) -> None:
        """Preempt or abort a request, or reset all, perhaps."""
        settings, rng = self.settings, self.rng
        if not self.requests:
            return
        if rng.random() < settings.preempt:
            self.preempt(rng.choice(list(self.requests.values())))
        if rng.random() < settings.reset:
            self.reset()
        if rng.random() < settings.abort:
            request_id = rng.choice(list(self.requests))
            self.abort(request_id)
            self.counts["aborts"] += 1
            if rng.random() < 0.5:
                self.add_random(request_id)
                self.counts["names used again"] += 1

    def run(self, disturbed: int = 0) -> None:
        """Make random moves until nothing can move; the first ``disturbed`` with disturbances."""
        rng, moves = self.rng, self.moves
        for made in range(100_000):
            if made < disturbed:
                self.disturb()
            if moves[int(rng.random() * len(moves))]():
                continue
            if not any(move() for move in moves) and not self.requests:
                return
        raise AssertionError("the pipeline does not come to rest")

    def run_in_step(self) -> int:
        """Run with every stage taking one round for a tick; return the number of rounds.

        The scheduler sends whatever it may before each round, and hears of the last one's result.
        """
        for rounds in range(100_000):
            while self.schedule():
                pass
            if not self.in_flight:
                return rounds
            due = bool(self.last.line)
            for number in reversed(range(len(self.early))):
                self.pass_on(number)
            if due:
                self.finish_tick()
            self.receive()
        raise AssertionError("the pipeline does not come to rest")
