"""Between vLLM's scheduler and the load policy: who is decoding, and what ticks take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.protocol import Decoding, FixedDepth, LoadPolicy, TickCosts

logger = init_logger("vllm.plugins.ppsd")

LOG_EVERY = 10.0
"""Seconds between two lines of the log about the load, at least."""


class Admission:
    """Asks the policy which decoding requests enter each tick, and feeds it.

    Args:
        config: PPSD's.
        stages: pipeline size.
    """

    def __init__(self, config: PPSDConfig, stages: int) -> None:
        self._stages = stages
        self._costs = TickCosts()
        self._load: LoadPolicy | None = None
        if config.load_adaptive and config.max_drafts:
            self._load = LoadPolicy(stages, config.max_drafts, self._costs)
        self._policy = self._load or FixedDepth(config.max_drafts)
        self._decoding: set[str] = set()
        self._drafting: set[str] = set()
        self._drafted: dict[str, bool] = {}
        self._in_flight = 0
        self._last_result: float | None = None
        self._logged = (0.0, -1)

    def full(self, requests: int) -> bool:
        """Whether nothing is to be scheduled for ``requests`` until a result is in."""
        return self._policy.full(requests, self._in_flight)

    def admitted(self, running: Sequence[Request], waiting: int) -> set[str]:
        """Return the ids of the decoding requests that enter the next tick.

        Args:
            running: the scheduler's running requests.
            waiting: how many more wait.
        """
        decoding = [
            # A grammar's next mask needs the token before it, so requests with
            # structured output decode plainly.
            Decoding(
                r.request_id,
                r.num_output_placeholders,
                may_draft=not r.use_structured_output,
                drafted=self._drafted.get(r.request_id, True),
            )
            for r in running
            if not r.is_prefill_chunk
        ]
        chosen = self._policy.admit(decoding, waiting > 0 or len(decoding) < len(running))
        self._decoding = {r.request_id for r in decoding}
        self._drafting = chosen.drafting
        self._log(len(decoding))
        return chosen.entering

    def sent(self, scheduler_output: SchedulerOutput) -> set[str]:
        """A tick was scheduled; return the requests that need no draft behind their lane."""
        self._in_flight += bool(scheduler_output.num_scheduled_tokens)
        for request_id in scheduler_output.finished_req_ids:
            self._drafted.pop(request_id, None)
            if self._load is not None:
                self._load.acceptance.forget(request_id)
        entered = set(scheduler_output.num_scheduled_tokens)
        prompts = entered - self._decoding
        if prompts and not self._policy.drafts_beside_prompts(len(self._decoding | entered)):
            quiet = entered
        else:
            quiet = entered - prompts - self._drafting
        self._drafted |= {request_id: request_id not in quiet for request_id in entered}
        return quiet

    def received(self, scheduler_output: SchedulerOutput, output: ModelRunnerOutput) -> None:
        """A tick's result is in: time it if stages had nothing to wait for."""
        lanes = len(scheduler_output.num_scheduled_tokens)
        if not lanes:
            return
        self._in_flight -= 1
        now = time.monotonic()
        ordinary = scheduler_output.total_num_scheduled_tokens == lanes and any(
            output.sampled_token_ids
        )
        if ordinary and self._last_result is not None:
            self._costs.observe(lanes, now - self._last_result)
        # The time to the next result is that of a tick only if the stages are full.
        full = self._in_flight >= self._stages - 1
        self._last_result = now if ordinary and full else None

    def judged(self, request_id: str, hit: bool) -> None:
        """A draft was compared with the retired token."""
        if self._load is not None:
            self._load.acceptance.judged(request_id, hit)

    def _log(self, decoding: int) -> None:
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
