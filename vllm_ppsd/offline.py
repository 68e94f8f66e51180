"""An engine for the package's own commands: a pipeline in this process, stopped in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_ppsd.config.cpu_binding import bound


@contextmanager
def engine(model: str, partition: Sequence[int], **options: Any) -> Iterator[Any]:
    """Start a ``vllm.LLM`` with a set of cores for every stage.

    Args:
        model: the target.
        partition: decoder layers per stage.
        options: of ``LLM``, over what is set here: short contexts, few requests, a small
            key/value cache, no prefix caching.
    """
    from vllm import LLM

    small = {
        "max_model_len": 1024,
        # vLLM warms up with one step of this size, which takes minutes on few cores.
        "max_num_batched_tokens": 256,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 2**28,
        "enable_prefix_caching": False,
        "seed": 0,
    }
    with bound(stages=len(partition), partition=partition):
        llm = LLM(model, pipeline_parallel_size=len(partition), **(small | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
