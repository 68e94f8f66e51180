"""The frozen target in transformers: its exit states and its final states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vllm_ppsd.exit_head.fingerprint import model_folder
from vllm_ppsd.training.attention import PACKED
from vllm_ppsd.training.errors import TrainingError


@dataclass(frozen=True)
class Pass:
    """What one pass of the target over packed documents yields.

    Attributes:
        exits: exit layer to the state behind it, [tokens, hidden].
        final: the LM head's input (behind the final norm), [tokens, hidden].
    """

    exits: dict[int, torch.Tensor]
    final: torch.Tensor


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
    def run(self, tokens: torch.Tensor, lengths: Sequence[int], exits: Sequence[int]) -> Pass:
        """Run over packed documents.

        Args:
            tokens: int64 [tokens], the documents one behind the other.
            lengths: tokens per document.
            exits: exit layers whose states are wanted.
        """
        found: dict[int, torch.Tensor] = {}
        with self._listening(exits, found):
            output = self._model.model(
                input_ids=tokens[None],
                position_ids=positions(lengths).to(tokens.device)[None],
                use_cache=False,
                packed_lengths=tuple(lengths),
            )
        return Pass(found, output.last_hidden_state[0])

    @contextmanager
    def _listening(self, exits: Sequence[int], found: dict[int, torch.Tensor]) -> Iterator[None]:
        def keep(exit_layer: int) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                state = output[0] if isinstance(output, tuple) else output
                found[exit_layer] = state[0]

            return hook

        layers = self._model.model.layers
        handles = [layers[e - 1].register_forward_hook(keep(e)) for e in exits]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def positions(lengths: Sequence[int]) -> torch.Tensor:
    """Return each token's position in its document, int64 [sum of lengths]."""
    return torch.cat([torch.arange(length) for length in lengths])


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return bfloat16 where asked for, or native under ``auto``; else float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def decoder_layers(model: str | Path) -> int:
    """Return how many decoder layers a model has, from its config alone.

    Raises:
        TrainingError: the config names none.
    """
    config = AutoConfig.from_pretrained(model_folder(str(model)))
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise TrainingError(f"{model} has no decoder layers (no num_hidden_layers in its config)")
    return layers


def check_exit_layer(model: str, exit_layer: int) -> None:
    """Refuse an exit that is not before the model's last layer.

    Raises:
        TrainingError: names the range.
    """
    layers = decoder_layers(model)
    if not 1 <= exit_layer < layers:
        raise TrainingError(
            f"exit layer {exit_layer} is out of range: {model} has {layers} layers, so it "
            f"must lie between 1 and {layers - 1}"
        )


def check_start_layer(model: str, exit_layer: int, start_layer: int, layers: int) -> None:
    """Refuse a layer for the head's layers to start from that is not behind the exit.

    Args:
        layers: of the head.

    Raises:
        TrainingError: names the range.
    """
    last = decoder_layers(model) - layers
    if not exit_layer < start_layer <= last:
        raise TrainingError(
            f"start layer {start_layer} is out of range: behind exit layer {exit_layer}, a head of "
            f"{layers} layer(s) for {model} can start from layers {exit_layer + 1} to {last}; "
            "leave it out to start right behind the exit"
        )


def check_deeper_layers(model: str, exit_layer: int, deeper_layers: Sequence[int]) -> None:
    """Refuse ends of later stages that are none.

    Raises:
        TrainingError: says what they must be.
    """
    if not deeper_layers:
        return
    layers = decoder_layers(model)
    ends = [exit_layer, *deeper_layers]
    if sorted(set(ends)) != ends or ends[-1] != layers:
        raise TrainingError(
            f"the deeper layers {', '.join(map(str, deeper_layers))} must rise from behind the "
            f"exit layer {exit_layer} to {layers}, the layers of {model}"
        )
