"""The targets that PPSD knows, by architecture.

A target that is not listed is refused before anything else happens: an architecture that nobody
tried fails deep inside a worker, or drafts from wrong logits without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_ppsd.config.errors import ExitHeadError


@dataclass(frozen=True)
class Architecture:
    """What works with the targets of an architecture.

    Attributes:
        transformer_heads: whether heads of the target's own decoder layers can be trained and
            served; ``lens`` heads always can.
        entries_alone: whether key/value entries of a head's layer can be written without
            attending (``layers.write_layer_entries``).
        one_device: whether the embedding and the layers before the exit are all there is before
            the exit, so that PPSD runs on one device.
    """

    transformer_heads: bool = True
    entries_alone: bool = False
    one_device: bool = False


PLAIN = Architecture(entries_alone=True, one_device=True)
PIPELINE = Architecture()
LENS = Architecture(transformer_heads=False)

ARCHITECTURES = {
    "Ernie4_5ForCausalLM": PIPELINE,
    "Gemma2ForCausalLM": PIPELINE,
    "Gemma3ForCausalLM": PIPELINE,
    "GemmaForCausalLM": PIPELINE,
    "Glm4ForCausalLM": PIPELINE,
    "GraniteForCausalLM": PIPELINE,
    "GraniteMoeForCausalLM": LENS,
    "LlamaForCausalLM": PLAIN,
    "Ministral3ForCausalLM": PIPELINE,
    "MistralForCausalLM": PLAIN,
    "MixtralForCausalLM": LENS,
    "OlmoeForCausalLM": LENS,
    "Phi3ForCausalLM": PLAIN,
    "Qwen2ForCausalLM": PLAIN,
    "Qwen2MoeForCausalLM": LENS,
    "Qwen3ForCausalLM": PLAIN,
    "Qwen3MoeForCausalLM": LENS,
    "SmolLM3ForCausalLM": LENS,
}


def architecture(name: str) -> Architecture:
    """Return what is known of an architecture.

    Raises:
        ExitHeadError: nothing is.
    """
    known = ARCHITECTURES.get(name)
    if known is None:
        raise ExitHeadError(
            f"{name} is not supported yet; PPSD knows {', '.join(sorted(ARCHITECTURES))}"
        )
    return known


def check_head(name: str, head_type: str) -> None:
    """Refuse a type of head that does not work with an architecture.

    Raises:
        ExitHeadError: nothing is known of the architecture, or it takes no such heads.
    """
    if head_type == "transformer" and not architecture(name).transformer_heads:
        raise ExitHeadError(
            f"{name} takes no transformer heads yet: a head cannot be made of its layers; make a "
            "lens head (`--head lens`)"
        )


@dataclass(frozen=True)
class LogitsShape:
    """What a target does to its LM head's output: times ``scale``, then ``soft_cap``.

    Attributes:
        scale: factor.
        soft_cap: c of c * tanh(logits / c); None for no cap.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits from the LM head's output, of any shape."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * (logits / self.soft_cap).tanh()


def logits_shape(config: Any) -> LogitsShape:
    """Return the shape of a target's logits.

    Args:
        config: the target's transformers config.
    """
    scale = getattr(config, "logit_scale", None) or 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale = scale / divisor
    return LogitsShape(scale, getattr(config, "final_logit_softcapping", None))
