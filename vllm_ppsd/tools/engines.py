"""Start vLLM engines, and time what they generate."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from vllm_ppsd.config.cpu_binding import CORES, PARTITION, deal
from vllm_ppsd.config.environment import environment
from vllm_ppsd.exit_head.target_files import DUPLICATES

T = TypeVar("T")

DEFAULTS: dict[str, Any] = {
    "max_model_len": 2048,
    # vLLM warms up with one step of this size; its default takes minutes on few cores.
    "max_num_batched_tokens": 512,
    "max_num_seqs": 16,
    # Several engines may share the machine; vLLM would take all memory for one.
    "kv_cache_memory_bytes": 2**29,
    # The files that exit heads are made for, as PPSD's own engines have it.
    "load_format": "hf",
    "ignore_patterns": ["original/**/*", DUPLICATES],
    "seed": 0,
    "disable_log_stats": False,
    "enable_prefix_caching": False,
}

PPSD_ONLY: dict[str, Any] = {
    "worker_extension_cls": "vllm_ppsd.tools.worker_extension.ToolsWorkerExtension",
    # vLLM's metrics are of the process: of several engines they are the last one's.
    "per_request_spec_decode_metrics": "summary",
}


@contextmanager
def engine(
    model: str,
    *,
    stages: int = 1,
    partition: Sequence[int] = (),
    cores: str | None = None,
    **options: Any,
) -> Iterator[LLM]:
    """Start an engine, and stop it at the end.

    Args:
        model: the target: a folder or a name on the hub.
        stages: pipeline size, where no partition is given.
        partition: decoder layers per stage; PPSD's or vLLM's own where it is empty.
        cores: a set per stage, in vLLM's notation; by default all that this process may
            use, dealt out evenly.
        options: of ``vllm.LLM``, over ``DEFAULTS``. An engine with PPSD also gets
            ``ToolsWorkerExtension`` and counts the drafts of every request.

    Raises:
        PPSDConfigError: there are fewer cores than stages.
    """
    stages = len(partition) or stages
    speculation = options.get("speculative_config") or {}
    extra = PPSD_ONLY if speculation.get("method") == "ppsd" else {}
    variables = {
        CORES: cores or deal(sorted(os.sched_getaffinity(0)), stages),
        PARTITION: ",".join(map(str, partition)) or None,
    }
    with environment(variables):
        llm = LLM(model, pipeline_parallel_size=stages, **(DEFAULTS | extra | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@dataclass(frozen=True)
class Timed:
    """One generated request.

    Attributes:
        prompt: prompt token ids.
        tokens: output token ids.
        decode_seconds: from the first to the last output token.
        passes: engine steps that brought the output tokens but the first.
        first_token_seconds: from the request's arrival in the engine to its first token.
        drafts: that were retired, of an engine with PPSD.
        hits: among them.
    """

    prompt: list[int]
    tokens: list[int]
    decode_seconds: float
    passes: int
    first_token_seconds: float
    drafts: int = 0
    hits: int = 0

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.decode_seconds / (len(self.tokens) - 1)

    @property
    def ms_per_pass(self) -> float:
        return 1000 * self.decode_seconds / self.passes


def generate(llm: LLM, prompt: Sequence[int], max_tokens: int, **sampling: Any) -> Timed:
    """Generate for one request alone; arguments as of ``generate_together``."""
    (timed,) = generate_together(llm, [prompt], max_tokens, **sampling)
    return timed


def generate_together(
    llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int, **sampling: Any
) -> list[Timed]:
    """Generate for requests that arrive at once, and time each.

    Args:
        llm: an idle engine.
        prompts: token ids of each request.
        max_tokens: output tokens of each.
        sampling: of ``SamplingParams``; greedy and past every end of text unless it says
            otherwise.
    """
    params = SamplingParams(
        **{"temperature": 0.0, "ignore_eos": True} | sampling,
        max_tokens=max_tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    begin = time.monotonic_ns()
    for number, request in enumerate(llm.renderer.render_cmpl(asked)):
        llm.llm_engine.add_request(f"{begin}-{number:04}", request, params)
    steps = 0
    outputs: list[Any] = []
    while llm.llm_engine.has_unfinished_requests():
        outputs += llm.llm_engine.step()
        steps += 1
    outputs.sort(key=lambda output: str(output.request_id))
    return [
        Timed(
            list(prompt),
            list(output.outputs[0].token_ids),
            output.metrics.last_token_ts - output.metrics.first_token_ts,
            steps - 1,
            output.metrics.first_token_ts - output.metrics.queued_ts,
            *_draft_counts(output.outputs[0].spec_decode_metrics),
        )
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def _draft_counts(metrics: Any) -> tuple[int, int]:
    if metrics is None:
        return 0, 0
    hits = sum(accepted * steps for accepted, steps in enumerate(metrics.histogram))
    return metrics.num_draft_tokens, hits


def rotated(names: Sequence[T], turn: int) -> list[T]:
    """Return the names in the order of a turn, so that nobody always comes first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def settle(seconds: float = 2.0) -> None:
    """Wait until the engine that ran last has stopped spinning on its queues."""
    time.sleep(seconds)
