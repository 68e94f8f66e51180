"""vLLM engines for measurements: several alive at once, so that runs can be interleaved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from vllm_ppsd.config.cpu_binding import CORES, PARTITION
from vllm_ppsd.config.environment import environment

T = TypeVar("T")

COMMON: dict[str, Any] = {
    "max_model_len": 2048,
    # vLLM warms up with one step of this size; its default takes minutes on few cores.
    "max_num_batched_tokens": 512,
    "max_num_seqs": 16,
    # Several engines share the machine; vLLM would take all memory for one.
    "kv_cache_memory_bytes": 2**29,
    "seed": 0,
    "disable_log_stats": False,
    "enable_prefix_caching": False,
}


PER_REQUEST: dict[str, Any] = {"per_request_spec_decode_metrics": "summary"}
"""Options with which an engine counts the drafts of every request: the metrics of several
engines in one process are the last one's."""


@dataclass(frozen=True)
class Timed:
    """One generated request.

    Attributes:
        prompt: prompt token ids.
        tokens: output token ids.
        decode_seconds: from the first to the last output token.
        passes: engine steps that brought the output tokens but the first.
        first_token_seconds: from the request's arrival in the engine to its first token.
        drafts: that were retired, where the engine has ``PER_REQUEST`` among its options.
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


def start(
    model: str, *, stages: int, cores: str, partition: Sequence[int] = (), **options: Any
) -> LLM:
    """Start an engine on ``cores`` (vLLM's notation) with ``stages`` pipeline ranks."""
    split = ",".join(map(str, partition)) or None
    with environment({CORES: cores, PARTITION: split}):
        return LLM(model, pipeline_parallel_size=stages, **(COMMON | options))


def generate(
    llm: LLM,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Timed:
    """Generate for one request, past every end of text, and time its decoding."""
    (timed,) = generate_together(llm, [prompt], max_tokens, temperature, seed)
    return timed


def generate_together(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[Timed]:
    """Generate for requests that arrive at once, past every end of text; time each."""
    params = SamplingParams(
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    begin = time.monotonic_ns()
    for number, request in enumerate(llm.renderer.render_cmpl(asked)):
        llm.llm_engine.add_request(f"benchmark-{begin}-{number:04}", request, params)
    steps = 0
    found: list[Any] = []
    while llm.llm_engine.has_unfinished_requests():
        found += llm.llm_engine.step()
        steps += 1
    return [
        Timed(
            list(prompt),
            list(output.outputs[0].token_ids),
            output.metrics.last_token_ts - output.metrics.first_token_ts,
            steps - 1,
            output.metrics.first_token_ts - output.metrics.queued_ts,
            *_drafts(output.outputs[0].spec_decode_metrics),
        )
        for prompt, output in zip(prompts, sorted(found, key=_request_id), strict=True)
    ]


def _drafts(metrics: Any) -> tuple[int, int]:
    if metrics is None:
        return 0, 0
    hits = sum(accepted * steps for accepted, steps in enumerate(metrics.histogram))
    return metrics.num_draft_tokens, hits


def _request_id(output: Any) -> str:
    return str(output.request_id)


def draft_counts(llm: LLM) -> tuple[int, int]:
    """Return (retired drafts, hits) since the engine started, from vLLM's metrics."""
    values = {metric.name: metric for metric in llm.get_metrics()}
    drafts: Any = values["vllm:spec_decode_num_draft_tokens"]
    hits: Any = values["vllm:spec_decode_num_accepted_tokens"]
    return drafts.value, hits.value


def rotated(names: Sequence[T], turn: int) -> list[T]:
    """Return the names in the order of a turn, so that nobody comes first always."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def stop(llm: LLM) -> None:
    """End an engine's processes."""
    llm.llm_engine.engine_core.shutdown()


def settle(seconds: float = 2.0) -> None:
    """Wait until the engine that ran last has stopped spinning on its queues."""
    time.sleep(seconds)
