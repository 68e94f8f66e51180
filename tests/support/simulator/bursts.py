"""A simulator of bursts: what plans yield, tick by tick, with made-up times and drafts.

Ticks pass the stages in order, and what decides a tick is known when it starts, so each is followed
through all stages before the next one is made.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_ppsd.protocol.acceptance import Rates
from vllm_ppsd.protocol.bursts import BurstPlan, StageTimes


@dataclass
class _Request:
    """One request.

    Attributes:
        ready: when its next lane may enter, if no verdict makes it wait.
        root: whether that is a root.
        right: whether all drafts of its chain so far were right, which nobody knows yet.
        flushed: when stage 0 hears of the miss in its chain.
        verdicts: when stage 0 hears of its lanes that are not verified.
    """

    plan: BurstPlan
    rates: Rates
    ready: float = 0.0
    root: bool = True
    right: bool = True
    flushed: float = math.inf
    verdicts: deque[float] = field(default_factory=deque)

    def enters(self) -> float:
        """When its next lane may enter stage 0."""
        waits = self.verdicts[-1 - self.plan.depth] if len(self.verdicts) > self.plan.depth else 0.0
        return min(self.flushed, max(self.ready, waits))


class BurstSimulation:
    """Requests that decode side by side.

    Args:
        times: what everything takes.
        requests: plan and acceptance rates of each.
        seed: of the drafts.
    """

    def __init__(
        self, times: StageTimes, requests: Sequence[tuple[BurstPlan, Rates]], seed: int = 0
    ) -> None:
        self._times = times
        self._stages = len(times.stages)
        self._requests = [_Request(plan, rates) for plan, rates in requests]
        self._rng = random.Random(seed)
        self._free = [0.0] * self._stages
        self._results: deque[float] = deque()
        verified = [r for r in self._requests if not r.plan.depth]
        self._dealt = math.ceil(len(verified) / self._stages)
        self._most = max(self._stages, *(r.plan.depth + 1 for r in self._requests))
        self.tokens = 0
        self.now = 0.0

    def run(self, tokens: int) -> float:
        """Decode so many tokens in all; return tokens per second."""
        while self.tokens < tokens:
            self._tick()
        return self.tokens / self.now

    def _tick(self) -> None:
        start = max(self._free[0], min(r.enters() for r in self._requests))
        if len(self._requests) > 1 and len(self._results) >= self._most:
            start = max(start, self._results[-self._most])
        entering = self._entering(start)
        rows = {}
        steps = [0]
        for i in entering:
            request = self._requests[i]
            if request.flushed <= start:
                request.root, request.right, request.flushed = True, True, math.inf
                request.verdicts.clear()
            while request.verdicts and request.verdicts[0] <= start:
                request.verdicts.popleft()
            if request.root:
                steps.append(request.plan.reentry)
            rows[i] = 1 + request.plan.reentry if request.root else request.plan.following
        counting = [i for i in entering if self._requests[i].right]
        roots = sum(self._requests[i].root for i in entering)
        begin = start + self._times.continuations(max(steps), roots)
        arrives, drafted = self._pass(entering, rows, begin)
        last = self._stages - 1
        verdict = max(arrives, self._free[last])
        if counting:
            if last:
                verdict += self._times.stage(last, sum(rows[i] for i in counting))
                self._free[last] = verdict = max(verdict, drafted + self._times.hop)
            verdict += self._times.hop if last else 0.0
            self.now = max(self.now, verdict)
        self._results.append(verdict)
        if len(self._results) > 4 * self._most:
            self._results.popleft()
        for i in entering:
            self._judge(self._requests[i], verdict)

    def _entering(self, start: float) -> list[int]:
        """The requests of a tick: all that are ready, of those that do not draft ahead a share."""
        ready = [i for i, r in enumerate(self._requests) if r.enters() <= start]
        plain = [i for i in ready if not self._requests[i].plan.depth]
        plain.sort(key=lambda i: self._requests[i].enters())
        dealt = set(plain[: self._dealt])
        return [i for i in ready if self._requests[i].plan.depth or i in dealt]

    def _pass(self, entering: list[int], rows: dict[int, int], begin: float) -> tuple[float, float]:
        """Run a tick on all stages before the last, and the head.

        Returns:
            When the last stage may begin, and when the drafts are made.
        """
        drafted = arrives = begin
        flushed = [(self._requests[i].flushed, rows[i]) for i in entering]
        for stage in range(max(1, self._stages - 1)):
            done = start = max(arrives, self._free[stage])
            alive = sum([count for known, count in flushed if known > start])
            if alive:
                done += self._times.stage(stage, alive)
            self._free[stage] = done
            if stage == 0:
                drafted = self._draft(entering, done)
            arrives = done + (self._times.hop if self._stages > 1 else 0.0)
        return arrives, drafted

    def _draft(self, entering: list[int], now: float) -> float:
        """The head drafts behind the lanes that are alive."""
        drafting = [
            self._requests[i]
            for i in entering
            if self._requests[i].plan.depth and self._requests[i].flushed > now
        ]
        if drafting:
            length = max(r.plan.following for r in drafting)
            now += self._times.drafting(length, len(drafting))
            self._free[0] = now
        for request in drafting:
            request.ready = now
        return now

    def _judge(self, request: _Request, verdict: float) -> None:
        """Decide a lane that has entered, and say what comes next of its request."""
        plan, was_root = request.plan, request.root
        request.root = False
        request.verdicts.append(verdict)
        if not request.right:
            return
        chances = request.rates.reentry_chain(plan.reentry)
        if not was_root:
            # Its first draft was judged with the lane before.
            chances = request.rates.following_chain(plan.following)[1:]
        hits = 0
        while hits < len(chances) and self._rng.random() < chances[hits]:
            hits += 1
        self.tokens += hits + 1
        if not plan.depth or not self._goes_on(request.rates, hits, len(chances)):
            request.right, request.flushed = False, verdict

    def _goes_on(self, rates: Rates, hits: int, drafts: int) -> bool:
        """Whether stage 0 drafts again so that the next lane begins where the first miss is."""
        if any(self._rng.random() >= rates.kept for _ in range(hits)):
            return False
        return self._rng.random() < (rates.steps[0] if hits == drafts else rates.mended)
