"""What the ports to vLLM's model runners have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.forward_context import set_forward_context


class BasePort:
    """The part of ``RunnerPort`` that is the same over V1 and V2.

    Args:
        runner: vLLM's model runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.vllm_config = runner.vllm_config
        self.device = runner.device

    def model(self) -> Any:
        return self._runner.get_model()

    def empty_states(self, tokens: int) -> Any:
        return self._runner.model.make_empty_intermediate_tensors(
            batch_size=tokens, dtype=self._runner.model_config.dtype, device=self.device
        )

    @contextmanager
    def warm_up_context(self, tokens: int) -> Iterator[None]:
        with torch.inference_mode(), set_forward_context(None, self.vllm_config, num_tokens=tokens):
            yield
