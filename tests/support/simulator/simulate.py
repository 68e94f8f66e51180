"""A discrete-event simulator of the protocol: its own rules, made-up times and drafts.

Scheduler, stage 0 and the last stage decide by the objects of ``vllm_ppsd.protocol``
that decide in the engine; what is made up is how long everything takes and whether a
draft is right. The result is a ``Trace``, as recorded from a real run.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from support.simulator.pace import Pace
from support.simulator.ticks import Ear, Request, Step
from support.simulator.way_back import WayBack
from vllm_ppsd.planning.times import Profile
from vllm_ppsd.protocol import (
    Candidate,
    Decoding,
    Draft,
    DraftBook,
    Drafts,
    FixedDepth,
    RetirementBook,
    StaleBook,
    TickBook,
    Verdict,
    flush,
    steps_in_flight,
)
from vllm_ppsd.trace.recorder import lane_result
from vllm_ppsd.trace.spans import Span, StageRecord, Trace, TracedLane
from vllm_ppsd.worker.events import What

TRUE, FALSE = 1, 2
"""The token that the target samples everywhere, and the one that a wrong draft is."""


class Simulation:
    """Decodes ``tokens`` tokens for each of ``requests`` requests.

    Args:
        profile: how long everything takes.
        partition: decoder layers per stage.
        alpha: probability that a draft is right.
        drafts: drafts of a request that may be in flight; 0 is plain decoding.
        requests: how many decode side by side.
        tokens: of each.
        seed: of the drafts.
    """

    def __init__(
        self,
        profile: Profile,
        partition: Sequence[int],
        alpha: float,
        drafts: int,
        requests: int = 1,
        tokens: int = 400,
        seed: int = 0,
    ) -> None:
        self._profile, self._partition = profile, partition
        self._alpha, self._depth, self._tokens = alpha, drafts, tokens
        self._rng = random.Random(seed)
        self._stages = len(partition)
        self._requests = {f"r{i}": Request() for i in range(requests)}
        self._policy = FixedDepth(drafts)
        self._size = max(self._stages, steps_in_flight(drafts))
        self._drafts = DraftBook()
        self._ears = [Ear(self._drafts, drafts)]
        self._ears += [Ear(StaleBook(), drafts) for _ in range(self._stages - 2)]
        self._retirement = RetirementBook()
        self._queues: list[deque[Step]] = [deque() for _ in partition]
        self._busy = [False] * self._stages
        self._in_flight = 0
        self._ticks = TickBook()
        self._free_since = -math.inf
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._way_back = WayBack(profile if drafts else None, partition, self._after)
        self._pace = Pace(profile.contention, lambda: self._now, self._after)
        self._spans: list[Span] = []
        self._outcomes: list[list[TracedLane]] = []

    def run(self) -> Trace:
        """Run to the end; return what every stage did."""
        self._schedule()
        while self._events:
            self._now, _, action = heapq.heappop(self._events)
            action()
        return Trace(
            StageRecord(
                stage=stage,
                spans=[span for span in self._spans if span.stage == stage],
                ticks=self._outcomes,
            )
            for stage in range(self._stages)
        )

    # The scheduler ---------------------------------------------------------

    def _schedule(self) -> None:
        while self._in_flight < self._size:
            decoding = [
                Decoding(name, request.flight.unverified)
                for name, request in self._requests.items()
                if request.retired + request.flight.unverified < self._tokens
            ]
            entering = self._policy.admit(decoding).entering
            if not self._depth:
                entering = self._dealt(entering)
            if not entering:
                return
            lanes = []
            for name in sorted(entering):
                request = self._requests[name]
                flight = request.flight
                known = int(flight.computed <= request.retired)
                lanes.append(self._ticks.lane(name, flight.computed, 1, known, samples=1))
                request.flight = replace(
                    flight,
                    computed=flight.computed + 1,
                    unverified=flight.unverified + 1,
                    in_flight=flight.in_flight + 1,
                )
            self._in_flight += 1
            tick = self._ticks.tick(lanes)
            step = Step(tick, Drafts(tick.number))
            self._outcomes.append([TracedLane(lane.request_id, lane.position, 1) for lane in lanes])
            self._after(self._profile.control / 2, partial(self._arrive, 0, step))

    def _dealt(self, entering: set[str]) -> set[str]:
        """Plain decoding deals its requests over the stages evenly."""
        share = -(-len(self._requests) // self._stages)
        return set(sorted(entering)[:share])

    def _result(self, step: Step, verdict: Verdict) -> None:
        self._in_flight -= 1
        for lane in step.lanes:
            request = self._requests[lane.request_id]
            flight = request.flight
            stale = flight.stale > 0
            flight = replace(
                flight, in_flight=flight.in_flight - 1, stale=flight.stale - 1 if stale else 0
            )
            outcome = verdict.outcomes.get(lane.request_id)
            if outcome is not None:
                request.retired += len(outcome.tokens)
                flight = replace(flight, unverified=flight.unverified - len(outcome.tokens))
                if outcome.missed and flight.unverified:
                    flight = flush(flight)
            request.flight = flight
        self._schedule()

    # The stages ------------------------------------------------------------

    def _arrive(self, stage: int, step: Step) -> None:
        self._queues[stage].append(step)
        self._start(stage)

    def _start(self, stage: int) -> None:
        if self._busy[stage] or not self._queues[stage]:
            return
        ready = self._free_since + self._profile.prepare if stage == 0 else 0.0
        if self._now < ready:
            self._after(ready - self._now, lambda: self._start(stage))
        elif stage == self._stages - 1:
            self._start_last()
        elif not self._depth:
            step = self._queues[stage].popleft()
            self._work(stage, step, lambda: self._leave(stage, step))
        elif self._ears[stage].holds(self._queues[stage][0]):
            self._ears[stage].held_since = min(self._ears[stage].held_since, self._now)
        else:
            self._start_skipping(stage)

    def _start_skipping(self, stage: int) -> None:
        """A stage before the last, which runs no tick that it knows to be stale."""
        step, ear = self._queues[stage].popleft(), self._ears[stage]
        held_since, ear.held_since = min(ear.held_since, self._now), math.inf
        self._spans.append(Span(stage, What.HOLD, held_since, self._now, step.number))
        ear.catch_up()
        for lane in step.lanes:
            ear.book.arrive(lane)
            if stage == 0:
                self._drafts.inputs(lane)
        if stage == 0:
            self._way_back.enter(step.lanes)
        if not ear.gate.start(step.tick):
            self._way_back.layers_done(stage, step.lanes, skipped=True)
            self._leave(stage, step)
        elif stage == 0:
            self._work(0, step, lambda: self._draft(step))
        else:
            self._work(stage, step, lambda: self._leave(stage, step))

    def _draft(self, step: Step) -> None:
        """The states are on their way; the head runs behind them."""
        self._after(self._profile.hand_over, lambda: self._arrive(1, step))
        self._ears[0].catch_up()
        if all(self._drafts.is_stale(lane) for lane in step.lanes):
            self._start(0)
            return
        self._busy[0] = True
        step.drafts_arrive = math.inf
        began = self._now
        alive = [lane for lane in step.lanes if not self._drafts.is_stale(lane)]
        self._way_back.hold(alive, lambda: self._draft_with_all(step, began))

    def _draft_with_all(self, step: Step, began: float) -> None:
        """What the head reads is there."""
        if self._now > began:
            self._spans.append(Span(0, What.STATES, began, self._now, step.number))
        for lane in step.lanes:
            token = TRUE if self._rng.random() < self._alpha else FALSE
            step.drafts.candidates[lane.request_id] = (Candidate((Draft(token),)),)
        self._drafts.propose(step.drafts)

        def done() -> None:
            self._busy[0] = False
            self._free_since = self._now
            self._after(self._profile.hand_over, partial(self._drafts_arrive, step))
            self._start(0)

        self._run(0, step, [(What.DRAFT, self._profile.at(len(step.lanes)).head)], done)

    def _leave(self, stage: int, step: Step) -> None:
        self._after(self._profile.hand_over, lambda: self._arrive(stage + 1, step))
        self._start(stage)

    def _start_last(self) -> None:
        last = self._stages - 1
        step = self._queues[last].popleft()
        if not any(self._retirement.counts(lane) for lane in step.lanes):
            self._way_back.layers_done(last, step.lanes, skipped=True)
            self._judge(step)
            self._start(last)
            return

        def sampled() -> None:
            # The drafts may still be on their way.
            if step.drafts_arrive <= self._now:
                self._judge_and_go_on(step)
            else:
                self._busy[last] = True
                step.waits = True

        self._work(last, step, sampled)

    def _drafts_arrive(self, step: Step) -> None:
        step.drafts_arrive = self._now
        if step.waits:
            self._judge_and_go_on(step)

    def _judge_and_go_on(self, step: Step) -> None:
        last = self._stages - 1
        self._busy[last] = False
        self._judge(step)
        self._start(last)

    def _judge(self, step: Step) -> None:
        verdict = Verdict(
            step.number,
            {
                lane.request_id: self._retirement.retire(
                    lane, [TRUE], step.drafts.candidates.get(lane.request_id, ())
                )
                for lane in step.lanes
                if self._retirement.counts(lane)
            },
        )
        self._outcomes[step.number] = [
            traced._replace(
                outcome=lane_result(lane, verdict.outcomes.get(lane.request_id)),
            )
            for traced, lane in zip(self._outcomes[step.number], step.lanes, strict=True)
        ]
        if self._depth:
            self._after(self._profile.verdict, lambda: self._receive(verdict))
        self._after(self._profile.control / 2, lambda: self._result(step, verdict))

    def _receive(self, verdict: Verdict) -> None:
        for stage, ear in enumerate(self._ears):
            ear.verdicts.append(verdict)
            self._start(stage)

    # Time ------------------------------------------------------------------

    def _work(self, stage: int, step: Step, then: Callable[[], None]) -> None:
        """The stage's layers run, and on the last stage LM head and sampler."""
        parts = self._profile.at(len(step.lanes))
        work = [(What.LAYERS, self._partition[stage] * parts.layer)]
        if stage == self._stages - 1:
            work += [(What.LM_HEAD, parts.lm_head), (What.SAMPLE, parts.sampler)]
        self._busy[stage] = True

        def done() -> None:
            self._busy[stage] = False
            if stage == 0:
                self._free_since = self._now
            then()

        self._run(stage, step, work, done)

    def _run(
        self,
        stage: int,
        step: Step,
        work: Sequence[tuple[What, float]],
        then: Callable[[], None],
    ) -> None:
        """Run one piece of work after the other, each with its ms alone."""
        (what, alone), *others = work

        def done(start: float) -> None:
            self._spans.append(Span(stage, what, start, self._now, step.number))
            if what == What.LAYERS:
                self._way_back.layers_done(stage, step.lanes, skipped=False)
            if others:
                self._run(stage, step, others, then)
            else:
                then()

        self._pace.run(stage, alone, done)

    def _after(self, delay: float, action: Callable[[], None]) -> None:
        # Events of the same moment happen in the order in which they were planned.
        heapq.heappush(self._events, (self._now + delay, next(self._order), action))
