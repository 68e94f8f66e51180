"""Stage 0's part: drafts drawn as the last stage will draw the token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from vllm_ppsd.sampling.noise import choose, exponential_noise
from vllm_ppsd.to_device import on_device

GREEDY = 1e-5
"""Temperatures below are greedy to vLLM."""


def is_greedy(sampling: Any) -> bool:
    """Whether ``SamplingParams`` ask for the most probable token."""
    return bool(sampling.temperature < GREEDY)


def draw(shaped: torch.Tensor, states: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
    """Return one token per row, drawn from ``softmax(shaped)``.

    Args:
        shaped: float32 [rows, draft vocabulary], of ``shape``.
        states: each row's generator state for the position that is drafted.
        token_ids: int64 [draft vocabulary], ids in the target's vocabulary.

    Returns:
        int64 [rows], ids in the target's vocabulary.
    """
    noise = exponential_noise(torch.tensor(states, device=shaped.device), token_ids)
    return token_ids[choose(shaped, noise)]


def shape(logits: torch.Tensor, samplings: Sequence[Any]) -> torch.Tensor:
    """Return a copy of ``logits`` under temperature, min-p, top-k and top-p, as vLLM's sampler."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return on_device(values, logits.device, dtype)

    size = logits.shape[-1]
    shaped = logits / column([s.temperature for s in samplings])[:, None]
    if any(s.min_p for s in samplings):
        least = column([max(s.min_p, 0.0) for s in samplings]).log()
        top = shaped.amax(dim=-1)
        shaped = shaped.masked_fill(shaped < (top + least)[:, None], -torch.inf)
    top_k = top_p = None
    if any(0 < s.top_k < size for s in samplings):
        top_k = column([s.top_k if 0 < s.top_k < size else size for s in samplings], torch.int64)
    if any(s.top_p < 1 for s in samplings):
        top_p = column([s.top_p for s in samplings])
    return apply_top_k_top_p(shaped, top_k, top_p)
