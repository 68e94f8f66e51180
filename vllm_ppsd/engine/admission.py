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

logger = init_logger("vllm.plugins.ppsd")

LOG_EVERY = 10.0
"""Seconds between two lines of the log about the load, at least."""


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
        self._plan = config.plan
        self._costs = TickCosts()
        self._load: LoadPolicy | None = None
        self._planned: PlannedLoad | None = None
        if config.max_drafts and not config.exact:
            costs = PartCosts(weights.stages, weights.head / weights.stages[0])
            self._costs = costs.ticks
            policy: BurstPolicy | FixedPlan = (
                BurstPolicy(
                    config.longest_burst, config.max_drafts, MARGIN, shared=config.load_adaptive
                )
                if self._plan is None
                else FixedPlan(self._plan)
            )
            self._planned = PlannedLoad(stages, config.max_drafts, policy, costs)
        elif config.load_adaptive and config.max_drafts:
            self._load = LoadPolicy(stages, config.max_drafts, self._costs)
        self._policy = self._planned or self._load or FixedDepth(config.max_drafts)
        self._alone: tuple[int, float, Lane] | None = None
        self._drafted: dict[str, bool] = {}
        self._in_flight = 0
        self._last_result: float | None = None
        self._logged = (0.0, -1)

    def full(self, requests: int) -> bool:
        """Whether nothing is to be scheduled for ``requests`` until a result is in."""
        return self._policy.full(requests, self._in_flight)

    def admit(self, running: Sequence[Request], waiting: int) -> Admitted:
        """Decide which decoding requests enter the next tick, and which of them draft.

        Args:
            running: the scheduler's running requests.
            waiting: how many more wait.
        """
        if self._planned is not None:
            self._planned.choose([r.request_id for r in running])
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
        self._log(len(decoding))
        return admitted

    def plan(self, request: Request) -> BurstPlan:
        """Return how a request drafts, where the load lets it."""
        sampling = request.sampling_params
        if request.use_structured_output:
            return PLAIN
        base = self._plan if self._planned is None else self._planned.plan(request.request_id)
        assert base is not None
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
            left: requests that have left the engine.
        """
        self._in_flight += bool(lanes)
        for request_id in left:
            self._drafted.pop(request_id, None)
            if self._load is not None:
                self._load.acceptance.forget(request_id)
            if self._planned is not None:
                self._planned.forget(request_id)
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
        if self._planned is not None:
            self._learn_parts(self._planned.costs, scheduler_output.tick, output, now)
        drafts = sum(map(len, scheduler_output.scheduled_spec_decode_tokens.values()))
        tokens = scheduler_output.total_num_scheduled_tokens
        ordinary = tokens == requests + drafts and any(output.sampled_token_ids)
        if ordinary and self._last_result is not None:
            # Bursts are of rows; else every lane is one.
            self._costs.observe(tokens if self._planned else requests, now - self._last_result)
        # The time to the next result is that of a tick only if the stages are full.
        full = self._in_flight >= self._stages - 1
        self._last_result = now if ordinary and full else None

    def judged(self, lane: Lane, outcome: Outcome) -> None:
        """Drafts of a lane, or behind it, were compared with what the last stage sampled."""
        if self._planned is not None:
            self._planned.judged(lane, outcome)
        if self._load is not None:
            for i in range(outcome.compared):
                self._load.acceptance.judged(outcome.request_id, hit=i < outcome.accepted)

    def _learn_parts(
        self, costs: PartCosts, tick: Tick, output: ModelRunnerOutput, now: float
    ) -> None:
        """Learn what the parts of a tick took, where it was a request's alone."""
        if isinstance(output, PPSDModelRunnerOutput) and output.verdict.seconds is not None:
            costs.observe_parts(sum(lane.length for lane in tick.lanes), output.verdict.seconds)
        if self._alone is not None and self._alone[0] == tick.number:
            _, sent, lane = self._alone
            if lane.length == lane.samples:
                costs.observe_round_trip(lane.length, lane.drafted, now - sent)
            self._alone = None

    def _log(self, decoding: int) -> None:
        if self._planned is not None and (news := self._planned.news(time.monotonic())):
            logger.info("PPSD: %s", news)
        at, drafting = self._logged
        if self._load is None or self._load.drafting == drafting:
            return
        now = time.monotonic()
        if now - at < LOG_EVERY:
            return
        self._logged = (now, self._load.drafting)
        logger.info(
            "PPSD: %d of %d decoding requests draft; recent acceptance rate %.2f, %s",
            self._load.drafting,
            decoding,
            self._load.acceptance.overall,
            self._costs.describe(),
        )
