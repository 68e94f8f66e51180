"""Record an engine while it generates."""

from __future__ import annotations

from typing import Any

from vllm_ppsd.trace.spans import StageRecord, Trace


def record(llm: Any, prompts: list[Any], sampling: Any) -> Trace:
    """Generate with an engine that is otherwise idle, and return what its stages did.

    Args:
        llm: a ``vllm.LLM`` with PPSD in a pipeline.
        prompts: as of ``LLM.generate``.
        sampling: its parameters.
    """
    llm.collective_rpc("start_trace")
    llm.generate(prompts, sampling, use_tqdm=False)
    return Trace(map(StageRecord.model_validate_json, llm.collective_rpc("stop_trace")))
