"""Between vLLM's scheduler and the load policy: who is decoding, and what ticks take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from vllm.logger import init_logger
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.costs import TickCosts as ByWeight
from vllm_ppsd.engine.output import PPSDModelRunnerOutput, PPSDSchedulerOutput
from vllm_ppsd.protocol import (
    PLAIN,
    Admitted,
    Admitting,
    BurstPlan,
    BurstPolicy,
    Decoding,
    FixedDepth,
    FixedPlan,
    Lane,
    LoadPolicy,
    Outcome,
    PartCosts,
    PlannedLoad,
    Tick,
    TickBook,
    TickCosts,
)
from vllm_ppsd.protocol.load import UNBOUNDED
from vllm_ppsd.sampling.drafts import is_greedy

logger = init_logger("vllm.plugins.ppsd")

MARGIN = 1.05
"""Times what plain decoding yields that drafting must promise where several requests decode: the
scheduler's time is not in what the parts take."""

ONE_TOKEN_EACH = BurstPlan(depth=UNBOUNDED)
"""Lanes of one token, as deep as the pipeline allows."""


class Admission:
    """Asks the policy which decoding requests enter each tick, and feeds it.

    Args:
        config: PPSD's.
        stages: pipeline size.
        ticks: what is in flight.
        weights: what stages and head take by their weights, until it is measured.
    """

    def __init__(self, config: PPSDConfig, stages: int, ticks: TickBook, weights: ByWeight) -> None:
        self._stages, self._ticks = stages, ticks
        self._parts: PartCosts | None = None
        self._policy: Admitting
        if not config.max_drafts or (config.exact and not config.load_adaptive):
            self._costs = TickCosts()
            self._policy = FixedDepth(config.max_drafts)
        elif not config.times_parts:
            self._costs = TickCosts()
            self._policy = LoadPolicy(stages, config.max_drafts, self._costs)
        else:
            self._parts = PartCosts(weights.stages, weights.head / weights.stages[0])
            self._costs = self._parts.ticks
            policy: BurstPolicy | FixedPlan
            if config.plan is None:
                drafts = config.longest_burst, config.max_drafts
                policy = BurstPolicy(*drafts, MARGIN, shared=config.load_adaptive)
            else:
                policy = FixedPlan(config.plan)
            self._policy = PlannedLoad(stages, config.max_drafts, policy, self._parts)
        self._alone: tuple[int, float, Lane] | None = None
        self._drafted: dict[str, bool] = {}
        self._in_flight = 0
        self._last_result: float | None = None

    def arrived(self, request: Request) -> None:
        """A request has come; what is remembered of another of its name is dropped."""
        self._forget(request.request_id)
        sampling = request.sampling_params
        self._policy.arrived(request.request_id, sampling is not None and not is_greedy(sampling))

    def full(self, requests: int) -> bool:
        """Whether nothing is to be scheduled for ``requests`` until a result is in."""
        return self._policy.full(requests, self._in_flight)

    def admit(self, running: Sequence[Request], waiting: int) -> Admitted:
        """Decide which decoding requests enter the next tick, and which of them draft.

        Args:
            running: the scheduler's running requests.
            waiting: how many more wait.
        """
        self._policy.choose([r.request_id for r in running], waits=not self._in_flight)
        decoding = [
            # A grammar's next mask needs the token before it, so requests with
            # structured output decode plainly.
            Decoding(
                r.request_id,
                # A result that has no outcome, as of plain decoding, ends its level too.
                min(self._ticks.unverified(r.request_id), r.num_output_placeholders),
                may_draft=not r.use_structured_output,
                drafted=self._drafted.get(r.request_id, True),
                depth=self.plan(r).depth,
            )
            for r in running
            if not r.is_prefill_chunk
        ]
        admitted = self._policy.admit(decoding, waiting > 0 or len(decoding) < len(running))
        if news := self._policy.news(time.monotonic()):
            logger.info("PPSD: %s", news)
        return admitted

    def plan(self, request: Request) -> BurstPlan:
        """Return how a request drafts, where the load lets it."""
        sampling = request.sampling_params
        if request.use_structured_output:
            return PLAIN
        base = self._policy.plan(request.request_id)
        if sampling is not None and sampling.thinking_token_budget is not None:
            # What ends its thinking is counted once a step.
            return ONE_TOKEN_EACH if base.depth else PLAIN
        return base

    def sent(
        self,
        admitted: Admitted,
        lanes: Sequence[Lane],
        plans: Mapping[str, BurstPlan],
        left: Iterable[str],
    ) -> set[str]:
        """A tick was made; return the requests that need no draft behind their lane.

        Args:
            admitted: what was decided for it.
            lanes: of the tick.
            plans: of its requests.
            left: requests that have left the engine, and are not back.
        """
        self._in_flight += bool(lanes)
        for request_id in left:
            self._forget(request_id)
        if self._in_flight == len(lanes) == 1 and lanes[0].is_root and lanes[0].samples:
            self._alone = lanes[0].tick, time.monotonic(), lanes[0]
        entered = {lane.request_id for lane in lanes}
        prompts = entered - admitted.decoding
        if prompts and not self._policy.drafts_beside_prompts(len(admitted.decoding | entered)):
            no_draft = entered
        else:
            no_draft = entered - prompts - admitted.drafting
        no_draft = no_draft | {name for name, plan in plans.items() if not plan.depth}
        self._drafted |= {request_id: request_id not in no_draft for request_id in entered}
        return no_draft

    def received(self, scheduler_output: PPSDSchedulerOutput, output: ModelRunnerOutput) -> None:
        """A tick's result is in: time it if stages had nothing to wait for."""
        requests = len(scheduler_output.num_scheduled_tokens)
        if not requests:
            return
        self._in_flight -= 1
        now = time.monotonic()
        if self._parts is not None:
            self._learn_parts(self._parts, scheduler_output.tick, output, now)
        drafts = sum(map(len, scheduler_output.scheduled_spec_decode_tokens.values()))
        tokens = scheduler_output.total_num_scheduled_tokens
        prompts = tokens != requests + drafts
        self._policy.retired(sum(map(len, output.sampled_token_ids)), now, prompts)
        ordinary = not prompts and any(output.sampled_token_ids)
        if ordinary and self._last_result is not None:
            # Bursts are of rows; else every lane is one.
            self._costs.observe(tokens if self._parts else requests, now - self._last_result)
        # The time to the next result is that of a tick only if the stages are full.
        full = self._in_flight >= self._stages - 1
        self._last_result = now if ordinary and full else None

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Drafts of a lane, or behind it, were compared with what the last stage sampled."""
        self._policy.judged(lane, outcome)

    def _forget(self, request_id: str) -> None:
        self._drafted.pop(request_id, None)
        self._policy.forget(request_id)

    def _learn_parts(
        self, costs: PartCosts, tick: Tick, output: ModelRunnerOutput, now: float
    ) -> None:
        """Learn what the parts of a tick took, and a round trip where one request decodes."""
        if isinstance(output, PPSDModelRunnerOutput):
            if output.verdict.seconds is not None:
                costs.observe_parts(tick, output.verdict.seconds)
            for seen in output.verdict.passes:
                costs.observe_pass(seen)
        if self._alone is not None and self._alone[0] == tick.number:
            _, sent, lane = self._alone
            if lane.length == lane.samples:
                costs.observe_round_trip(lane.length, lane.drafted, now - sent)
            self._alone = None
