"""Real engines for the end-to-end tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.executor import multiproc_executor

from support.workers import forked

PLAIN = {"num_speculative_tokens": 0}
EXTENSION = "vllm_ppsd.tools.worker_extension.ToolsWorkerExtension"


@dataclass
class Output:
    """One request's output, with the two most likely tokens of every position."""

    tokens: list[int]
    logprobs: list[dict[int, float]]


@contextmanager
def engine(model: Path, *, stages: int = 2, ppsd: dict[str, Any], **options: Any) -> Iterator[LLM]:
    """An engine with ``stages`` stages; workers share cores if there are too few."""
    workers = stages * options.get("tensor_parallel_size", 1)
    cores = "|".join(str(i % 2) for i in range(workers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
        # The engine core lives in the test's process, which saves a start of vLLM;
        # test_serve and the demo run it in a process of its own.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setattr(multiproc_executor, "get_mp_context", forked)
        llm = LLM(
            str(model),
            pipeline_parallel_size=stages,
            speculative_config={"method": "ppsd"} | ppsd,
            **{
                "enforce_eager": True,
                "max_model_len": 256,
                "max_num_batched_tokens": 256,
                "max_num_seqs": 8,
                "kv_cache_memory_bytes": 2**26,
                "disable_log_stats": False,
                "seed": 0,
                "worker_extension_cls": EXTENSION,
            }
            | options,
        )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def params(tokens: int, **options: Any) -> SamplingParams:
    defaults: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "logprobs": 2}
    return SamplingParams(max_tokens=tokens, **(defaults | options))


def generate(
    llm: LLM, prompt: Sequence[int], sampling: SamplingParams, lora: LoRARequest | None = None
) -> Output:
    """Generate for one request alone."""
    request: Any = {"prompt_token_ids": list(prompt)}
    return _output(llm.generate([request], sampling, use_tqdm=False, lora_request=lora)[0])


def generate_staggered(
    llm: LLM, prompts: Sequence[Sequence[int]], sampling: SamplingParams, every: int
) -> list[Output]:
    """Generate for several requests, one arriving every ``every`` engine steps."""
    core = llm.llm_engine
    outputs: dict[str, Output] = {}
    waiting = list(enumerate(prompts))
    step = 0
    while waiting or core.has_unfinished_requests():
        if waiting and step % every == 0:
            number, prompt = waiting.pop(0)
            core.add_request(f"r{number}", {"prompt_token_ids": list(prompt)}, sampling)
        for output in core.step():
            if output.finished:
                outputs[output.request_id] = _output(output)
        step += 1
    return [outputs[f"r{i}"] for i in range(len(prompts))]


def counts(llm: LLM) -> tuple[int, int, int]:
    """Return (drafts, hits, misses) from vLLM's metrics."""
    drafts = _metric(llm, "spec_decode_num_draft_tokens")
    hits = _metric(llm, "spec_decode_num_accepted_tokens")
    return drafts, hits, drafts - hits


def preemptions(llm: LLM) -> int:
    """Return how many requests lost their blocks so far."""
    return _metric(llm, "num_preemptions")


def prefix_cache_hits(llm: LLM) -> int:
    """Return how many prompt tokens were found in the prefix cache so far."""
    return _metric(llm, "prefix_cache_hits")


def accepted_by_position(llm: LLM) -> list[int]:
    """Return how many drafts were hits so far, by their place in what vLLM calls a draft."""
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    return list(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values)


def assert_drafted(llm: LLM) -> None:
    """Fail where speculation was not exercised both ways."""
    drafts, hits, misses = counts(llm)
    assert drafts > 0
    assert hits > 0
    assert misses > 0


def tipped(plain: Output, ppsd: Output) -> bool:
    """Whether two outputs differ; only a tie within 1e-4 may make them differ.

    Batches of several requests have other shapes with PPSD than without, and other
    shapes round differently.
    """
    for position, (a, b) in enumerate(zip(plain.tokens, ppsd.tokens, strict=True)):
        if a != b:
            seen = plain.logprobs[position]
            assert b in seen, f"position {position}: {b} is not among {seen}"
            assert abs(seen[a] - seen[b]) < 1e-4, f"position {position}: {seen}"
            return True
    return False


def _output(output: Any) -> Output:
    completion = output.outputs[0]
    logprobs = [
        {token: entry.logprob for token, entry in position.items()}
        for position in completion.logprobs or ()
    ]
    return Output(list(completion.token_ids), logprobs)


def _metric(llm: LLM, name: str) -> int:
    values: dict[str, Any] = {metric.name: metric for metric in llm.get_metrics()}
    count: int = values[f"vllm:{name}"].value
    return count
