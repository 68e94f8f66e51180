"""The scheduler of verify-while-draft: vLLM's async scheduler, plus flushes.

``AsyncScheduler`` already sends a position on before its token is known. This
subclass bounds how many such positions a request has in flight, judges each
retired token against stage 0's draft, and rewinds the request on a miss.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_ppsd.protocol import Flight, flush, may_enter

_CLOSED = 2**62
"""A step that never comes: the request waits until one of its results is back."""


class PPSDScheduler(AsyncScheduler):
    """Schedules plain decoding ahead of its results; stage 0 drafts the gap."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        self._ppsd = vllm_config.speculative_config
        assert self._ppsd is not None
        # Every lane carries one token, as in plain decoding: the base class must
        # neither reserve slots for draft tokens nor schedule any.
        plain = copy.copy(vllm_config)
        plain.speculative_config = None
        super().__init__(plain, *args, **kwargs)
        self._drafts: dict[str, int] = {}
        self._step_stats: SpecDecodingStats | None = None

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests[request_id]
            is_open = request.is_prefill_chunk or may_enter(
                request.num_output_placeholders, self._depth(request)
            )
            request.next_decode_eligible_step = 0 if is_open else _CLOSED

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        self._drafts = getattr(model_runner_output, "drafts", {})
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        token = new_token_ids[0]
        kept, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        request.next_decode_eligible_step = 0
        draft = self._drafts.get(request.request_id)
        if draft is not None:
            self._observe(hit=draft == token)
            if draft != token and not stopped and not is_stale:
                self._flush(request)
        return kept, stopped

    def make_stats(self, spec_decoding_stats: Any = None, *args: Any, **kwargs: Any) -> Any:
        stats, self._step_stats = self._step_stats, None
        return super().make_stats(stats, *args, **kwargs)

    def _depth(self, request: Request) -> int:
        """Drafts that ``request`` may have in flight.

        A grammar's next mask needs the token before it, so requests with
        structured output decode plainly.
        """
        assert self._ppsd is not None
        return 0 if request.use_structured_output else self._ppsd.max_drafts

    def _flush(self, request: Request) -> None:
        """Rewind after a miss; what is in flight delivers nothing when it returns."""
        if request.status != RequestStatus.RUNNING or not request.num_output_placeholders:
            return
        after = flush(
            Flight(
                computed=request.num_computed_tokens,
                unverified=request.num_output_placeholders,
                in_flight=request.num_in_flight_tokens,
                stale=request.num_stale_output_tokens,
            )
        )
        request.num_computed_tokens = after.computed
        request.num_output_placeholders = after.unverified
        # The last stage returns no token for a stale lane, so the results are
        # drained rather than dropped: a later preemption must still deliver the
        # lanes that count, or their draws from a seeded generator would be lost.
        request.num_stale_output_tokens = after.stale
        request.drop_stale_output = False

    def _observe(self, hit: bool) -> None:
        """Feed vLLM's own statistics: one draft of one token, accepted or not."""
        if not self.log_stats:
            return
        if self._step_stats is None:
            assert self._ppsd is not None
            self._step_stats = SpecDecodingStats.new(self._ppsd.num_speculative_tokens)
        self._step_stats.observe_draft(num_draft_tokens=1, num_accepted_tokens=int(hit))
