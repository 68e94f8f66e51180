"""The target's decoder layers inside an exit head."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.config import ExitHeadConfig


def build_layer(
    layer_class: type[nn.Module], vllm_config: VllmConfig, config: ExitHeadConfig, index: int
) -> nn.Module:
    """Build one of the target's own decoder layers, without the target's quantisation.

    It is numbered as the layer that it started from: the number decides what kind of layer it
    is (sliding window, rotary embedding, ...). The prefix before it is the head's own, so that
    vLLM gives it a key/value cache of its own.

    Raises:
        ExitHeadError: the class takes arguments that nothing is known of.
    """
    number = config.source_layer(index)
    # A head's tensors are floats, and some classes take their quantisation from here.
    unquantised = copy.copy(vllm_config)
    unquantised.quant_config = None
    available = {
        "vllm_config": unquantised,
        "config": vllm_config.model_config.hf_text_config,
        "cache_config": vllm_config.cache_config,
        "quant_config": None,
        "prefix": f"ppsd_exit_head_{index}.layers.{number}",
        "layer_idx": number,
    }
    parameters = inspect.signature(layer_class.__init__).parameters.values()
    missing = [
        p.name
        for p in parameters
        if p.name not in available
        and p.name != "self"
        and p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if missing:
        raise ExitHeadError(
            f"a transformer head cannot build the target's {layer_class.__name__}: it needs "
            f"{', '.join(missing)}"
        )
    given = {p.name: available[p.name] for p in parameters if p.name in available}
    if "config" in given and "vllm_config" in given:
        del given["config"]
    return layer_class(**given)


def carries_residual(layer: nn.Module) -> bool:
    """Whether a decoder layer hands on, beside its hidden states, what is to be added to them."""
    return "residual" in inspect.signature(layer.forward).parameters


def write_layer_entries(attention: Any, positions: torch.Tensor, hidden: torch.Tensor) -> None:
    """Write the key/value entries of one decoder layer, without attending.

    The attention is run whole where its backend writes entries only while it attends.

    Args:
        attention: the ``self_attn`` of a layer of an architecture with ``entries_alone``.
        positions: int64 [tokens].
        hidden: [tokens, hidden], normed.
    """
    inner = attention.attn
    if inner.attn_backend.forward_includes_kv_cache_update:
        attention(positions=positions, hidden_states=hidden)
        return
    qkv, _ = attention.qkv_proj(hidden)
    query, key, value = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    by_head = (-1, inner.num_kv_heads, inner.head_size)
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key.reshape(by_head)).reshape(key.shape)
    _, key = attention.rotary_emb(positions, query, key)
    unified_kv_cache_update(key.view(by_head), value.view(by_head), inner.layer_name)
