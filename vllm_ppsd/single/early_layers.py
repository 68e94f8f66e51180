"""The target up to the exit, as a module of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig

COMPILE_TAG = "ppsd_early_layers"
"""Names the compiled graph in vLLM's log and cache."""


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0})
class EarlyLayers(nn.Module):
    """Runs the target's own embedding and layers before the exit.

    They keep their key/value cache: a draft's entries are written at its own
    position, and the full pass writes them again.

    Args:
        vllm_config: the target's vLLM config.
        inner: the target's decoder (``model.model``), which owns the weights.
        exit_layer: decoder layers before the exit.
    """

    def __init__(self, *, vllm_config: VllmConfig, inner: nn.Module, exit_layer: int) -> None:
        super().__init__()
        # Not a submodule: the target owns and loads it.
        self._inner: list[Any] = [inner]
        self._exit_layer = exit_layer

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states and residual behind the exit layer, each [tokens, hidden].

        Args:
            input_ids: int32 [tokens].
            positions: int64 [tokens].
        """
        inner = self._inner[0]
        hidden, residual = inner.embed_tokens(input_ids), None
        for layer in inner.layers[: self._exit_layer]:
            hidden, residual = layer(positions, hidden, residual)
        assert residual is not None
        return hidden, residual
