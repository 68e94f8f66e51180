"""A head as it is served, without an engine around it; needs the fixture ``vllm_process``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vllm_ppsd.exit_head.continuation import Continuation
from vllm_ppsd.exit_head.module import ExitHead


@contextmanager
def served_head(head: Path, model: Path) -> Iterator[ExitHead]:
    """Build the head in ``head`` behind the target in ``model``, in float32, and let it run."""
    with served(head, model) as (built, _):
        yield built


@contextmanager
def served(head: Path, model: Path) -> Iterator[tuple[ExitHead, Continuation | None]]:
    """As ``served_head``, with how the head goes on."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.model_loader import get_model

    from vllm_ppsd.exit_head.build import build_exit_head

    config = EngineArgs(
        str(model), dtype="float32", enforce_eager=True, max_model_len=64
    ).create_engine_config()
    with set_current_vllm_config(config):
        built = build_exit_head(str(head), config, get_model(vllm_config=config), goes_on=True)
        with torch.inference_mode(), set_forward_context(None, config):
            yield built
