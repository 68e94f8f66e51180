"""Engine arguments, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_ppsd.config.entry import SCHEDULER_CLS, WORKER_CLS
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.ppsd import PPSDConfig


def engine(folder: Path, stages: int = 2, **options) -> EngineArgs:
    """Return arguments of an engine."""
    return EngineArgs(
        str(folder), pipeline_parallel_size=stages, max_model_len=256, enforce_eager=True, **options
    )


def command_line(folder: Path, *words: str) -> EngineArgs:
    """Return arguments as the command line makes them."""
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    line = ["--model", str(folder), "-pp", "2", "--max-model-len", "256", *words]
    return AsyncEngineArgs.from_cli_args(parser.parse_args(line))


def config_of(arguments: EngineArgs) -> PPSDConfig:
    """Return the config that arguments lead to."""
    vllm_config = arguments.create_engine_config()
    assert vllm_config.scheduler_config.scheduler_cls == SCHEDULER_CLS
    assert vllm_config.parallel_config.worker_cls == WORKER_CLS["cpu", False]
    assert isinstance(vllm_config.speculative_config, PPSDConfig)
    return vllm_config.speculative_config


def refused(arguments: EngineArgs, match: str) -> None:
    """Check that arguments are refused, and how."""
    with pytest.raises(PPSDConfigError, match=match):
        arguments.create_engine_config()


def record_of(folder: Path, text: str = "") -> dict:
    """Return options with recorded drafts; the record has this text."""
    file = folder / "record.jsonl"
    file.write_text(text)
    return {"method": "ppsd", "synthetic_drafter": {"record": str(file), "acceptance": 1.0}}


def synthetic(folder: Path) -> dict[str, Any]:
    """Return options with recorded drafts."""
    record = folder / "record.jsonl"
    record.write_text(json.dumps({"prompt_token_ids": [5], "output_token_ids": [7]}) + "\n")
    return {"method": "ppsd", "synthetic_drafter": {"record": str(record), "acceptance": 0.5}}
