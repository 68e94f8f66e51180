"""The draft LM head in int8 says what the one in bfloat16 says, but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vllm_ppsd.exit_head.int8 import Int8LMHead, runs_in_int8

pytestmark = pytest.mark.skipif(
    not runs_in_int8(torch.bfloat16), reason="no int8 kernel on this machine"
)


@pytest.fixture
def weight() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(640, 96) * torch.rand(640, 1)).bfloat16()


@pytest.mark.parametrize("rows", [1, 7])
def test_logits_are_those_of_the_weights_but_for_rounding(weight: torch.Tensor, rows: int):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    method = Int8LMHead()
    method.process_weights_after_loading(layer)
    assert not layer.weight.numel(), "the bfloat16 weights are kept beside"
    x = torch.randn(rows, 96).bfloat16()
    logits, expected = method.apply(layer, x), x.float() @ weight.float().T
    assert logits.dtype == torch.bfloat16 and logits.shape == expected.shape
    error = (logits.float() - expected).square().mean().sqrt()
    assert 0 < error < 0.02 * expected.std()


def test_a_row_of_zeros_gives_zero(weight: torch.Tensor):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer.weight[3] = 0
    method = Int8LMHead()
    method.process_weights_after_loading(layer)
    assert method.apply(layer, torch.randn(2, 96).bfloat16())[:, 3].eq(0).all()


def test_float32_targets_keep_their_weights():
    assert not runs_in_int8(torch.float32)
