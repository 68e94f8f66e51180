"""How a head goes on where there is no exit state yet: from a final state and the next token."""

from __future__ import annotations

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from vllm_ppsd.exit_head.module import ExitHead, Guess


@support_torch_compile(dynamic_arg_dims={"positions": 0, "final": 0, "tokens": 0})
class Continuation(nn.Module):
    """Drafts behind a token that no layer of the target has seen.

    The final state of the token before, which the head predicted or the target made, is fused
    with the token's embedding. The result takes the place of an exit state: the head's own
    layers, norm, map and LM head do the rest.

    Args:
        vllm_config: the target's vLLM config.
        head: a head with ``steps`` above 1.
        embedding: the target's, which needs nothing but ids.
    """

    def __init__(self, *, vllm_config: VllmConfig, head: ExitHead, embedding: nn.Module) -> None:
        super().__init__()
        # Not submodules: the worker owns and loads both.
        self._head, self._embedding = [head], [embedding]

    def forward(self, positions: torch.Tensor, final: torch.Tensor, tokens: torch.Tensor) -> Guess:
        """Return one draft per token.

        Args:
            positions: int64 [tokens], where the tokens stand; entries of the head are written
                there.
            final: [tokens, hidden], the LM head's input at the position before each.
            tokens: int64 [tokens]; their input embeddings are read as they are stored.
        """
        return self._head[0].go_on(positions, final, self._embedding[0](tokens))

    @property
    def attention_layers(self) -> set[str]:
        """The names by which vLLM knows the head's attention layers."""
        layers = self._head[0].modules()
        return {layer.layer_name for layer in layers if isinstance(layer, AttentionLayerBase)}

    def warm_up(self, positions: torch.Tensor, final: torch.Tensor) -> None:
        """Run once on tokens of no meaning, which compiles; arguments as in ``forward``."""
        self(positions, final, torch.zeros_like(positions))
