"""The scheduler of verify-while-draft: vLLM's async scheduler, with admission and flushes.

``AsyncScheduler`` already sends a position on before its token is known. This
subclass decides who enters each tick (``Admission``), makes the ``Tick`` that the stages are
sent, and rewinds a request where the last stage's verdict says that a draft was wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_ppsd.config.entry import model_shape
from vllm_ppsd.engine.admission import Admission
from vllm_ppsd.engine.output import PPSDModelRunnerOutput, PPSDSchedulerOutput
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.hooks.marks import hide
from vllm_ppsd.protocol import (
    Flight,
    Lane,
    Outcome,
    Shape,
    TickBook,
    flush,
    without_replaced,
)
from vllm_ppsd.sampling.seeds import Arrivals

_HELD = 2**62
"""A step that never comes: the request does not enter this tick."""

_UNKNOWN = -1
"""In place of a draft, which vLLM's scheduler counts and stage 0 knows."""


class PPSDScheduler(AsyncScheduler):
    """Schedules plain decoding ahead of its results; stage 0 drafts the gap."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = vllm_config.speculative_config
        assert config is not None
        # How many tokens a lane carries is decided here, request by request: the base class
        # must schedule no draft tokens of its own.
        super().__init__(hide(vllm_config), *args, **kwargs)
        # The head writes entries for all drafts behind a lane but the last.
        self.num_lookahead_tokens = config.longest_burst - 1
        stages = vllm_config.parallel_config.pipeline_parallel_size
        self._ticks = TickBook()
        self._read = -1
        head = ExitHeadFolder.open(config.model).config if config.model else None
        weights = model_shape(vllm_config.model_config).tick_costs(config.layer_partition, head)
        self._admission = Admission(config, stages, self._ticks, weights)
        self._most_drafts: int = config.num_speculative_tokens
        self._arrivals = Arrivals(vllm_config.model_config.seed) if config.makes_noise else None
        self._judged: dict[str, tuple[Lane, Outcome, int]] = {}
        self._step_stats: SpecDecodingStats | None = None

    def add_request(self, request: Request) -> None:
        is_new = request.request_id not in self.requests
        super().add_request(request)
        if is_new:
            self._admission.arrived(request)
        if is_new and self._arrivals is not None:
            self._arrivals.add(request.request_id, request.sampling_params.seed)
        if is_new and request.spec_decode_metrics is not None:
            # The base class knows of no drafts.
            request.spec_decode_metrics = RequestSpecDecodeMetrics.new(self._most_drafts)

    def has_requests(self) -> bool:
        """Whether there is anything to schedule now; while the stages are full there is not.

        The engine waits for a result then, rather than send the workers an empty step.
        """
        return super().has_requests() and not self._admission.full(sum(self.get_request_counts()))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        admitted = self._admission.admit(self.running, self.get_request_counts()[1])
        for request in self.running:
            held = request.request_id not in admitted.entering or _covered(request)
            held &= not request.is_prefill_chunk
            request.next_decode_eligible_step = _HELD if held else 0
            drafting = request.request_id in admitted.drafting
            request.spec_token_ids = [_UNKNOWN] * (self._length(request, drafting) - 1)
        scheduler_output = super().schedule(*args, **kwargs)
        lanes = [self._lane(*lane) for lane in _lanes_of(scheduler_output)]
        left = scheduler_output.finished_req_ids
        # A name may be in use again.
        gone = left - self.requests.keys()
        seeds: dict[str, int] = {}
        if self._arrivals is not None:
            seeds = self._arrivals.of(new.req_id for new in scheduler_output.scheduled_new_reqs)
            self._arrivals.forget(gone)
        plans = {
            lane.request_id: self._admission.plan(self.requests[lane.request_id]) for lane in lanes
        }
        no_draft = self._admission.sent(admitted, lanes, plans, gone)
        shapes = {
            lane.request_id: Shape(
                length=max(1, min(plans[lane.request_id].following, self._room(lane)))
            )
            for lane in lanes
        }
        plain = admitted.decoding - admitted.drafting
        reentry = {name for name, plan in plans.items() if plan.reentry and name not in plain}
        # Only a request that is alone is sent further ahead than its plan says.
        alone = len(lanes) == len(self.running) == 1
        depth = plans[lanes[0].request_id].depth if alone else None
        tick = self._ticks.tick(lanes, no_draft, seeds, left, shapes, reentry, depth, self._read)
        return PPSDSchedulerOutput.of(scheduler_output, tick)

    def update_from_output(
        self, scheduler_output: PPSDSchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        self._admission.received(scheduler_output, model_runner_output)
        # Without lanes vLLM's own output comes back.
        self._judged = {}
        if isinstance(model_runner_output, PPSDModelRunnerOutput):
            outcomes, tick = model_runner_output.verdict.outcomes, scheduler_output.tick
            self._read = tick.number
            for lane in tick.lanes:
                if outcome := outcomes.get(lane.request_id):
                    self._ticks.judge(lane, outcome)
                    drafts = lane.samples - 1 + tick.shape(lane.request_id).width
                    self._judged[lane.request_id] = lane, outcome, drafts
            # A flush takes back what a cut burst leaves over, with all that is behind it, and
            # the statistics are of outcomes.
            scheduler_output = copy.copy(scheduler_output)
            scheduler_output.scheduled_spec_decode_tokens = {}
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        lane, outcome, drafts = self._judged.get(request.request_id, (None, None, 0))
        if outcome is not None and not is_stale:
            # Before vLLM hashes what is computed for the prefix cache.
            request.num_computed_tokens -= outcome.overwritten
        kept, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if lane is not None and outcome is not None and outcome.compared:
            self._admission.judged(lane, outcome)
            self._observe(request, outcome, drafts)
            if not is_stale:
                if outcome.missed and not stopped:
                    self._flush(request)
                elif stopped or outcome.continues is not None:
                    # vLLM 0.33 hashes all that is then no longer in flight.
                    self._take_back(request, lane.samples - len(outcome.tokens))
        return kept, stopped

    def _lane(self, request_id: str, position: int, length: int) -> Lane:
        """Return a lane of the next tick.

        Its tokens are known as far as the request has them; a decoding request is sent on
        before it has the next one.
        """
        request = self.requests[request_id]
        known = max(0, min(length, request.num_tokens - position))
        samples = 0 if request.is_prefill_chunk else length - known + bool(known)
        return self._ticks.lane(request_id, position, length, known, samples)

    def _length(self, request: Request, drafting: bool) -> int:
        """Return how many tokens the next lane of a decoding request carries; 1 of a prompt.

        Args:
            request: a running one.
            drafting: whether the load lets it draft.
        """
        if request.is_prefill_chunk:
            return 1
        room = self._end(request) - 1 - request.num_computed_tokens
        length = 1
        if request.num_output_placeholders:
            length = self._ticks.shape(request.request_id).length
        elif drafting and self._ticks.may_burst(request.request_id):
            length = 1 + self._admission.plan(request).reentry
            # What was overwritten enters once more in front of the newest token.
            room -= request.num_tokens - request.num_computed_tokens - 1
        return max(1, min(length, room))

    def _room(self, lane: Lane) -> int:
        """Return how many more tokens its request can embed behind a lane."""
        return self._end(self.requests[lane.request_id]) - 1 - lane.end

    def _end(self, request: Request) -> int:
        """Return how many tokens a request has at most; it embeds all but the last."""
        return min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._ticks.restart(request.request_id)

    def make_stats(self, spec_decoding_stats: Any = None, *args: Any, **kwargs: Any) -> Any:
        stats, self._step_stats = self._step_stats, None
        return super().make_stats(stats, *args, **kwargs)

    def _take_back(self, request: Request, replaced: int) -> None:
        """Take back a lane's last drafts: wrong ones, or such as the lane behind has replaced."""
        if replaced:
            after = without_replaced(_flight_of(request), replaced)
            request.num_computed_tokens = after.computed
            request.num_output_placeholders = after.unverified

    def _flush(self, request: Request) -> None:
        """Rewind after a miss; what is in flight delivers nothing when it returns."""
        if request.status != RequestStatus.RUNNING or not request.num_output_placeholders:
            return
        after = flush(_flight_of(request))
        request.num_computed_tokens = after.computed
        request.num_output_placeholders = after.unverified
        # The last stage returns no token for a stale lane, so the results are
        # drained rather than dropped: a later preemption must still deliver the
        # lanes that count, or their draws from a seeded generator would be lost.
        request.num_stale_output_tokens = after.stale
        request.drop_stale_output = False

    def _observe(self, request: Request, outcome: Outcome, drafts: int) -> None:
        """Feed vLLM's own statistics: so many tokens drafted, so many accepted.

        One outcome is what vLLM calls a draft: of the lane's own drafts, behind its first row,
        and of the first one behind it.
        """
        if request.spec_decode_metrics is not None:
            request.spec_decode_metrics.observe(
                num_draft_tokens=drafts,
                num_accepted=outcome.accepted,
                detailed=self.spec_decode_metrics_level == "detailed",
            )
        if not self.log_stats:
            return
        if self._step_stats is None:
            self._step_stats = SpecDecodingStats.new(self._most_drafts)
        self._step_stats.observe_draft(
            num_draft_tokens=drafts, num_accepted_tokens=outcome.accepted
        )


def _flight_of(request: Request) -> Flight:
    return Flight(
        computed=request.num_computed_tokens,
        unverified=request.num_output_placeholders,
        in_flight=request.num_in_flight_tokens,
        stale=request.num_stale_output_tokens,
    )


def _lanes_of(scheduler_output: SchedulerOutput) -> Iterator[tuple[str, int, int]]:
    """Yield request id, position and length of every lane."""
    length = scheduler_output.num_scheduled_tokens
    for new in scheduler_output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens, length[new.req_id]
    cached = scheduler_output.scheduled_cached_reqs
    for request_id, position in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
        yield request_id, position, length[request_id]


def _covered(request: Request) -> bool:
    """Whether the lanes in flight end the request by its length, if no draft is missed.

    The base class asks the same, but counts what is in flight as if all might be missed,
    and sends one lane too many; here a miss rewinds the request, and it enters again.
    """
    return (
        request.num_output_placeholders > 0
        and request.num_computed_tokens + 1 >= request.num_prompt_tokens + request.max_tokens
    )
