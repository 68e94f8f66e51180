"""Packed attention: the mask, and that packing changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vllm_ppsd.training.packing import packed_attention

LENGTHS = [5, 1, 9, 3]


def random_heads(heads: int) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), 32, generator=torch.Generator().manual_seed(heads))


def mask_of(lengths: list[int]) -> torch.Tensor:
    """Return the block-diagonal causal mask, bool; True where a row attends."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = document[:, None] == document[None, :]
    return same & torch.ones_like(same).tril()


def test_it_equals_attention_under_the_mask():
    query, key, value = random_heads(4), random_heads(2), random_heads(2) + 1
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=mask_of(LENGTHS), enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(packed_attention(query, key, value, LENGTHS), expected)


@pytest.mark.parametrize(
    ("window", "soft_cap"), [(4, None), (None, 0.5), (4, 0.5), (max(LENGTHS), None)]
)
def test_windows_and_soft_caps_are_those_of_the_scores(window: int | None, soft_cap: float | None):
    query, key, value = random_heads(4), random_heads(2), random_heads(2) + 1
    scores = 0.2 * query @ key.repeat_interleave(2, dim=1).transpose(2, 3)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    place = torch.arange(sum(LENGTHS))
    seen = mask_of(LENGTHS)
    if window is not None:
        seen &= place[:, None] - place[None, :] < window
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    expected = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    result = packed_attention(query, key, value, LENGTHS, 0.2, window, soft_cap)
    torch.testing.assert_close(result, expected)


def test_packing_changes_no_document():
    query, key, value = random_heads(4), random_heads(2), random_heads(2) + 1
    packed = packed_attention(query, key, value, LENGTHS)
    start = 0
    for length in LENGTHS:
        alone = [t[:, :, start : start + length] for t in (query, key, value)]
        part = packed[:, start : start + length]
        torch.testing.assert_close(packed_attention(*alone, [length]), part)
        start += length


def test_the_mask_is_xformers_mask():
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    mask = bias.BlockDiagonalCausalMask.from_seqlens(LENGTHS)
    size = sum(LENGTHS)
    assert torch.equal(mask.materialize((size, size)) == 0, mask_of(LENGTHS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers attends on CUDA only")
def test_cuda_equals_cpu():
    pytest.importorskip("xformers")
    tensors = (random_heads(4), random_heads(2), random_heads(2) + 1)
    result = packed_attention(*(t.cuda() for t in tensors), LENGTHS).cpu()
    torch.testing.assert_close(result, packed_attention(*tensors, LENGTHS), rtol=1e-3, atol=1e-3)
