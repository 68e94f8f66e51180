"""Read a tick's lanes from vLLM's scheduler output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_ppsd.protocol import Lane

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


def lanes_of(scheduler_output: SchedulerOutput) -> dict[str, Lane]:
    """Return the lanes of a tick by request id.

    In a pipeline without async scheduling, ``new_token_ids`` holds the tokens that
    the scheduler knows for the scheduled positions; an empty list is a position
    whose token it does not know.
    """
    length = scheduler_output.num_scheduled_tokens
    lanes = {
        new.req_id: Lane(new.req_id, new.num_computed_tokens, length[new.req_id], False)
        for new in scheduler_output.scheduled_new_reqs
    }
    cached = scheduler_output.scheduled_cached_reqs
    for request_id, known, position in zip(
        cached.req_ids, cached.new_token_ids, cached.num_computed_tokens, strict=True
    ):
        lanes[request_id] = Lane(request_id, position, length[request_id], drafted=not known)
    return lanes
