"""Documents packed one behind the other: batches, positions, and attention.

Attention is causal within each document, none across. It is registered with transformers
under ``PACKED``, so that the target's own layer classes use it; a call passes the
documents' lengths as ``packed_lengths``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from vllm_ppsd.training.chains import ChainEntries

PACKED = "ppsd_packed"


class HasLength(Protocol):
    """Anything with a length in tokens."""

    @property
    def length(self) -> int: ...


D = TypeVar("D", bound=HasLength)


def pack(
    documents: Sequence[D], batch_tokens: int, rng: random.Random | None = None
) -> Iterator[list[D]]:
    """Yield batches of documents of at most ``batch_tokens`` (or one document).

    Args:
        rng: shuffles the documents first; None keeps their order.
    """
    order = list(documents)
    if rng is not None:
        rng.shuffle(order)
    batch: list[D] = []
    total = 0
    for document in order:
        if batch and total + document.length > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(document)
        total += document.length
    if batch:
        yield batch


def positions(lengths: Sequence[int]) -> torch.Tensor:
    """Return each token's position in its document, int64 [sum of lengths]."""
    return torch.cat([torch.arange(length) for length in lengths])


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Attend within documents that lie one behind the other.

    On CUDA with xformers installed, one call with its ``BlockDiagonalCausalMask``;
    elsewhere, and where a window or a soft cap matters, one call per document, which is the
    same mask without the work on its empty blocks.

    Args:
        query: [1, heads, tokens, head size].
        key: [1, key/value heads, tokens, head size].
        value: as ``key``.
        lengths: tokens per document; their sum is ``tokens``.
        scale: of the scores; None for one over the root of the head size.
        window: tokens that a token sees, itself included; None for all before it.
        soft_cap: c of c * tanh(scores / c); None for no cap.

    Returns:
        [1, tokens, heads, head size].
    """
    if window is not None and window >= max(lengths):
        window = None
    plain = window is None and soft_cap is None
    if plain and query.is_cuda and find_spec("xformers") is not None:
        return _xformers(query, key, value, lengths, scale)
    documents = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        if plain
        else masked_attention(q, k, v, _causal(q, window), scale, soft_cap)
        for q, k, v in zip(
            *(tensor.split(list(lengths), dim=2) for tensor in (query, key, value)), strict=True
        )
    ]
    return torch.cat(documents, dim=2).transpose(1, 2)


def _causal(query: torch.Tensor, window: int | None) -> torch.Tensor:
    size = query.shape[2]
    seen = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    return seen if window is None else seen.triu(1 - window)


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scale: float | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attend where ``seen``, bool [queries, keys]; the rest as of PyTorch's attention."""
    if soft_cap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scale, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    scores = (soft_cap * (scores / soft_cap).tanh()).masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _xformers(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float | None,
) -> torch.Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    rows = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = BlockDiagonalCausalMask.from_seqlens(list(lengths))
    attended: torch.Tensor = memory_efficient_attention(*rows, attn_bias=mask, scale=scale)
    return attended


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_lengths: Sequence[int] = (),
    entries: ChainEntries | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; the mask is made here."""
    if entries is not None and entries.step > 1:
        attended = entries.attend(module, query, key, value, scaling, sliding_window, softcap)
        return attended, None
    if entries is not None:
        entries.keep(module, key, value)
    attended = packed_attention(query, key, value, packed_lengths, scaling, sliding_window, softcap)
    return attended, None


AttentionInterface.register(PACKED, _forward)
