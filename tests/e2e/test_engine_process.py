"""An engine of a checkout in a process of its own: its text, drafts and acceptance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine_process import engine_process
from benchmarks.pipeline import HERE
from vllm_ppsd.config.cpu_binding import CORES
from vllm_ppsd.drafter.recorded import write_record

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PROMPT, TOKENS = list(range(5, 25)), 24


def test_it_drafts_as_asked_and_writes_the_text_of_plain_decoding(tiny_llama: Path, tmp_path: Path):
    options: dict[str, Any] = {
        "model": str(tiny_llama),
        "pipeline_parallel_size": 2,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_batched_tokens": 256,
        "kv_cache_memory_bytes": 2**26,
        "disable_log_stats": False,
    }
    plain = {"method": "ppsd", "num_speculative_tokens": 0}
    with engine_process(HERE, {CORES: "0|1"}, **options, speculative_config=plain) as engine:
        expected = engine.generate(PROMPT, TOKENS)
    assert len(expected.tokens) == TOKENS
    assert (expected.drafts, expected.hits) == (0, 0)
    record = tmp_path / "record.jsonl"
    write_record(record, [(PROMPT, expected.tokens)])
    drafter = {"record": str(record), "acceptance": 0.5}
    speculation = {"method": "ppsd", "synthetic_drafter": drafter}
    with engine_process(HERE, {CORES: "0|1"}, **options, speculative_config=speculation) as engine:
        for acceptance in (1.0, 0.0):
            run = engine.generate(PROMPT, TOKENS, acceptance)
            assert run.tokens == expected.tokens
            assert run.hits == acceptance * run.drafts
            assert run.drafts > 0
            assert run.ms_per_token > 0
