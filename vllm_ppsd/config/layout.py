"""How layers are split over pipeline stages, so that stage 0 ends at the exit layer.

Plain Python. Costs are in units of one decoder layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.config import ExitHeadConfig


@dataclass(frozen=True)
class ModelShape:
    """What decides a layer's and the LM head's weight, in elements."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def layer_weights(self) -> int:
        """Weights of one decoder layer (attention and gated MLP)."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def head_cost(self, head: ExitHeadConfig) -> float:
        """Weights of an exit head with its share of the LM head, in layers."""
        rows = head.draft_vocab_size or self.vocab_size
        weights = rows * self.hidden_size
        if head.start_layer is not None:
            weights += self.hidden_size**2
        if head.output_map:
            weights += self.hidden_size**2
        return head.num_layers + weights / self.layer_weights

    def draft_cost(self, head: ExitHeadConfig) -> float:
        """Weights that a draft reads on one device, as a share of a full pass's."""
        draft = head.exit_layer + self.head_cost(head)
        return draft / (self.num_layers + self.lm_head_cost)

    @property
    def lm_head_cost(self) -> float:
        """Weights of the LM head, in layers: decoding is bound by reading weights."""
        return self.vocab_size * self.hidden_size / self.layer_weights


def balanced_exit_layer(shape: ModelShape, num_stages: int) -> int:
    """Return the exit layer that makes the slowest stage as fast as can be.

    For a stage 0 without an exit head of its own (the synthetic drafter): stages
    1..n-1 hold the remaining layers, the last of them the LM head as well.
    """
    candidates = range(1, shape.num_layers - num_stages + 2)
    return min(candidates, key=lambda e: _slowest(shape, e, num_stages))


def split_layers(
    num_layers: int, lm_head_cost: float, exit_layer: int, num_stages: int
) -> list[int]:
    """Return the number of layers per stage; stage 0 holds exactly ``exit_layer``.

    The stages behind it are as equal as can be, the last one with its LM head.

    Args:
        num_layers: of the model.
        lm_head_cost: what the last stage does besides its layers, in layers.
        exit_layer: layers of stage 0.
        num_stages: pipeline size.

    Raises:
        PPSDConfigError: some stage would be left without a layer.
    """
    rest = num_layers - exit_layer
    behind = num_stages - 1
    if exit_layer < 1 or rest < behind:
        raise PPSDConfigError(
            f"exit layer {exit_layer} does not fit {num_stages} pipeline stages of a "
            f"model with {num_layers} layers: stage 0 holds the exit's layers and "
            f"each further stage needs at least one, so the exit layer must lie between "
            f"1 and {num_layers - behind}"
        )
    share = (rest + lm_head_cost) / behind
    last = min(max(1, round(share - lm_head_cost)), rest - (behind - 1))
    middle, extra = divmod(rest - last, behind - 1) if behind > 1 else (0, 0)
    return [
        exit_layer,
        *(middle + (i < extra) for i in range(behind - 1)),
        last if behind > 1 else rest,
    ]


def check_partition(text: str, exit_layer: int, num_layers: int, num_stages: int) -> list[int]:
    """Return a user's own ``VLLM_PP_LAYER_PARTITION`` if the exit head fits it.

    Raises:
        PPSDConfigError: it is not a list of layers per stage, or stage 0 does not
            end at the exit layer.
    """
    try:
        partition = [int(part) for part in text.split(",")]
    except ValueError:
        raise PPSDConfigError(
            f"VLLM_PP_LAYER_PARTITION={text!r} is not a comma-separated list of layer counts"
        ) from None
    if len(partition) != num_stages or sum(partition) != num_layers or min(partition) < 1:
        raise PPSDConfigError(
            f"VLLM_PP_LAYER_PARTITION={text!r} does not split {num_layers} layers over "
            f"{num_stages} pipeline stages"
        )
    if partition[0] != exit_layer:
        raise PPSDConfigError(
            f"VLLM_PP_LAYER_PARTITION={text!r} puts {partition[0]} layers on stage 0, but "
            f"the exit head reads the state after layer {exit_layer}; unset the variable "
            f"or let it start with {exit_layer}"
        )
    return partition


def _slowest(shape: ModelShape, exit_layer: int, num_stages: int) -> float:
    stages: list[float] = list(
        split_layers(shape.num_layers, shape.lm_head_cost, exit_layer, num_stages)
    )
    stages[-1] += shape.lm_head_cost
    return max(stages)
