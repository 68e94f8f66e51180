"""The frozen target in transformers: its exit states, its final states and its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import AutoHfQuantizer

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.architectures import logits_shape
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.training.packing import PACKED, positions

COMPARED_TOKENS, COMPARED_ROWS = 1024, 64
"""Of a document: tokens that run, and how many of them, the last ones, are compared."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Median divergence, in nats, that rounding explains."""


class Target:
    """The target, in evaluation mode, with packed attention.

    Args:
        model: folder or name.
        device: where it computes.
        dtype: float32, or bfloat16 where the device computes in it natively.

    Raises:
        TrainingError: the model has no ``model.layers``, or is quantised in a way that
            transformers cannot load here.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        check_loadable(model)
        self.name, self._dtype = model, dtype
        folder = model_folder(model)
        self.config = AutoConfig.from_pretrained(folder)
        self._shape = logits_shape(self.config)
        if quantisation := getattr(self.config, "quantization_config", None):
            # Else some are dequantised by the whole model's forward, of which run takes a part.
            quantisation["dequantize"] = True
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=self.config, dtype=dtype, attn_implementation=PACKED
        )
        self._model.to(device).eval().requires_grad_(False)
        if not hasattr(self._model.model, "layers"):
            raise TrainingError(f"{model} has no decoder layers at model.layers")

    @torch.inference_mode()
    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """Return the logits behind final states [rows, hidden]: float32 [rows, vocabulary]."""
        return self._shape.apply(self._model.lm_head(final).float())

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

    @torch.inference_mode()
    def check(self, documents: Sequence[Sequence[int]]) -> None:
        """Compare the distributions of packed documents with those of the model itself.

        Packed attention and the way from final states to logits are PPSD's own; the model's
        own forward, with transformers' plain attention, is what both must equal.

        Args:
            documents: token ids; the last one is compared.

        Raises:
            TrainingError: they diverge by more than rounding explains.
        """
        pack = [list(document[:COMPARED_TOKENS]) for document in documents]
        lengths = [len(document) for document in pack]
        device = self._model.device
        tokens = torch.tensor([t for document in pack for t in document], device=device)
        rows = min(COMPARED_ROWS, lengths[-1])
        _, final = self.run(tokens, lengths, [])
        packed = self.logits(final[-rows:]).log_softmax(dim=-1)
        self._model.set_attn_implementation("eager")
        try:
            output = self._model(
                input_ids=tokens[None, -lengths[-1] :], use_cache=False, logits_to_keep=rows
            )
        finally:
            self._model.set_attn_implementation(PACKED)
        own = output.logits[0].float().log_softmax(dim=-1)
        divergence = (own.exp() * (own - packed)).sum(dim=-1).median().item()
        if not divergence <= TOLERANCE[self._dtype]:
            raise TrainingError(
                f"the distributions that would be cached for {self.name} "
                f"({type(self._model).__name__}) diverge from the model's own by "
                f"{divergence:.3g} nats; PPSD does not compute this model as transformers does, "
                "so no head can be trained for it"
            )

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


def check_loadable(model: str) -> None:
    """Refuse a quantised target that transformers cannot load here; reads no weights.

    Raises:
        TrainingError: names the quantisation, and what is missing.
    """
    quantisation = getattr(
        AutoConfig.from_pretrained(model_folder(model)), "quantization_config", None
    )
    if quantisation is None:
        return
    try:
        quantizer = AutoHfQuantizer.from_config(quantisation, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the target {model} is quantised by {quantisation.get('quant_method')}, which "
            f"transformers cannot load here: {error}"
        ) from error


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return bfloat16 where asked for, or native under ``auto``; else float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
