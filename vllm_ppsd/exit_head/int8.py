"""The draft LM head in int8: on a CPU, reading its weights takes more time than all else in a step.

A draft is a guess that the target verifies, so what rounding costs is acceptance alone.
"""

from __future__ import annotations

import torch
from torch import nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import CpuArchEnum, current_platform

LARGEST = 127
PRIMITIVES = 32
"""Shapes that oneDNN remembers."""


def runs_in_int8(dtype: torch.dtype) -> bool:
    """Whether a draft LM head is quantised: on x86 CPUs, unless the target is in float32.

    Args:
        dtype: of the target.
    """
    return (
        current_platform.is_cpu()
        and current_platform.get_cpu_architecture() == CpuArchEnum.X86
        and ops._supports_onednn
        and dtype != torch.float32
    )


class Int8LMHead(UnquantizedEmbeddingMethod):
    """Quantises weights per row when they have been loaded, and inputs per row as they come.

    By vLLM's oneDNN kernel for int8 weights and activations.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Replace the weights of the layer, [vocabulary, hidden], by int8 and a scale per row."""
        weight = layer.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        dtype = layer.weight.dtype
        # The kernel packs the weights, but reads the scales where they are.
        layer.register_buffer("scales", scales[None], persistent=False)
        layer.int8 = ops.create_onednn_scaled_mm(
            rounded.t(), layer.scales, dtype, True, False, PRIMITIVES
        )
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits of hidden states [rows, hidden]."""
        rounded, scales, _ = ops.onednn_scaled_int8_quant(x)
        logits = x.new_empty(len(x), layer.int8.n)
        return ops.onednn_scaled_mm(layer.int8, rounded, logits, scales, None, None, bias)
