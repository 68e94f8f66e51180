"""The frozen target in transformers: its exit states and its final states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.training.packing import PACKED, positions


class Target:
    """The target, in evaluation mode, with packed attention.

    Args:
        model: folder or name.
        device: where it computes.
        dtype: float32, or bfloat16 where the device computes in it natively.

    Raises:
        TrainingError: the model has no ``model.layers``.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = model_folder(model)
        self.config = AutoConfig.from_pretrained(self.folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=dtype, attn_implementation=PACKED
        )
        self._model.to(device).eval().requires_grad_(False)
        if not hasattr(self._model.model, "layers"):
            raise TrainingError(f"{model} has no decoder layers at model.layers")

    @property
    def lm_head(self) -> torch.Tensor:
        """The LM head's weight, [vocabulary, hidden]."""
        weight: torch.Tensor = self._model.lm_head.weight
        return weight

    @torch.inference_mode()
    def run(
        self, tokens: torch.Tensor, lengths: Sequence[int], exits: Sequence[int]
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Run over packed documents.

        Args:
            tokens: int64 [tokens], the documents one behind the other.
            lengths: tokens per document.
            exits: exit layers whose states are wanted.

        Returns:
            The states behind each exit layer, and the LM head's input (behind the final norm),
            all [tokens, hidden].
        """
        states: dict[int, torch.Tensor] = {}
        with self._keep_states(exits, states):
            output = self._model.model(
                input_ids=tokens[None],
                position_ids=positions(lengths).to(tokens.device)[None],
                use_cache=False,
                packed_lengths=tuple(lengths),
            )
        return states, output.last_hidden_state[0]

    @contextmanager
    def _keep_states(self, exits: Sequence[int], states: dict[int, torch.Tensor]) -> Iterator[None]:
        """Put the state behind every exit layer into ``states`` while the block runs."""

        def keep(exit_layer: int) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                states[exit_layer] = (output[0] if isinstance(output, tuple) else output)[0]

            return hook

        layers = self._model.model.layers
        handles = [layers[e - 1].register_forward_hook(keep(e)) for e in exits]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return bfloat16 where asked for, or native under ``auto``; else float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
