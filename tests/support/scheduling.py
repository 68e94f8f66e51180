"""PPSD's scheduler without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from vllm_ppsd.engine.scheduler import PPSDScheduler

BLOCK = 32


def make_scheduler(model: Path, **options: Any) -> PPSDScheduler:
    """Return the scheduler of a pipeline of two stages, with PPSD's options."""
    arguments = EngineArgs(
        str(model),
        pipeline_parallel_size=2,
        max_model_len=256,
        block_size=BLOCK,
        speculative_config={"method": "ppsd"} | options,
        per_request_spec_decode_metrics="detailed",
    )
    config = arguments.create_engine_config()
    config.cache_config.num_gpu_blocks = 512
    attention = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    return PPSDScheduler(
        config,
        kv_cache_config=KVCacheConfig(
            num_blocks=512,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )


def add(scheduler: PPSDScheduler, *names: str, tokens: int = 20, **options: Any) -> None:
    """Add requests of a prompt of two tokens."""
    for name in names:
        sampling = SamplingParams(max_tokens=tokens, **({"ignore_eos": True} | options))
        sampling.update_from_generation_config({}, eos_token_id=2)
        scheduler.add_request(Request(name, [5, 6], sampling, None))
