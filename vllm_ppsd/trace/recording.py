"""Record an engine while it generates."""

from __future__ import annotations

from typing import Any

from vllm_ppsd.trace.spans import LaneResult, StageRecord, Trace, TracedLane


def record(llm: Any, prompts: list[Any], sampling: Any) -> Trace:
    """Generate with an engine that is otherwise idle, and return what its stages did.

    Args:
        llm: a ``vllm.LLM`` with PPSD in a pipeline.
        prompts: as of ``LLM.generate``.
        sampling: its parameters.
    """
    llm.collective_rpc("start_trace")
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    records = map(StageRecord.model_validate_json, llm.collective_rpc("stop_trace"))
    lengths = {
        answer.request_id: len(answer.prompt_token_ids) + len(answer.outputs[0].token_ids)
        for answer in answers
    }
    return Trace(_ended(record, lengths) for record in records)


def _ended(record: StageRecord, lengths: dict[str, int]) -> StageRecord:
    """Mark as stale what was in flight behind the token that ended its request.

    The last stage learns of an end (of a stop token, say) only after it.

    Args:
        record: what a stage recorded.
        lengths: tokens of each request, prompt and output, by the name its user knows,
            to which vLLM adds a suffix of its own.
    """

    def marked(lane: TracedLane) -> TracedLane:
        length = lengths[lane.request.rpartition("-")[0]]
        if lane.outcome is None or lane.position + lane.length < length:
            return lane
        return lane._replace(outcome=LaneResult.STALE)

    return record.model_copy(
        update={"ticks": [[marked(lane) for lane in lanes] for lanes in record.ticks]}
    )
