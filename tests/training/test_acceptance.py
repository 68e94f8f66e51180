"""Acceptance of drafts of sampled text, from known distributions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vllm_ppsd.exit_head.architectures import LogitsShape
from vllm_ppsd.training.acceptance import Sampled, judge_sampled
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.loss import DraftVocabulary

ROWS = 4000
P = torch.tensor([0.5, 0.3, 0.2])
"""The target's distribution, everywhere."""


class Head(torch.nn.Module):
    """Gives every row the same logits over its vocabulary."""

    def __init__(self, probabilities: torch.Tensor, shape: LogitsShape):
        super().__init__()
        self.shape = shape
        self.lm_head = torch.zeros(len(probabilities), 3)
        self._logits = probabilities.log()
        self.config = SimpleNamespace(target=SimpleNamespace(vocab_size=3))

    def forward(self, states, lengths, rows, deeper):
        return [self._logits.repeat(len(rows), 1)]


def judged(
    q: torch.Tensor,
    token_ids: torch.Tensor | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> Sampled:
    rows = torch.arange(ROWS)
    nothing = torch.zeros(ROWS, 1)
    # With a unit matrix for an LM head, the final state is the logits; it may be padded.
    batch = Batch(nothing, (ROWS,), rows, rows, nothing, nothing, P.log().repeat(ROWS, 1))
    vocabulary = DraftVocabulary(token_ids, 3)
    head = Head(q, LogitsShape(scale))
    return judge_sampled(head, [batch], vocabulary, torch.eye(4, 3), temperature)


def expected(p: torch.Tensor, q: torch.Tensor) -> float:
    """P(argmax of log p + noise equals that of log q + noise), noise of Gumbel's."""
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
    return (1 / ratios.sum(dim=1)).sum().item()


def test_a_head_that_knows_the_target_draws_what_it_draws():
    result = judged(P)
    assert result.acceptance == 1.0
    assert result.overlap == pytest.approx(1.0)
    assert result.argmax == pytest.approx(0.5)
    assert result.rows == ROWS


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_another_distribution_hits_as_often_as_coupled_noise_lets_it(temperature: float):
    q = torch.tensor([0.2, 0.3, 0.5])
    p, cold_q = ((x.log() / temperature).softmax(dim=-1) for x in (P, q))
    result = judged(q, temperature=temperature)
    assert result.acceptance == pytest.approx(expected(p, cold_q), abs=0.025)
    assert result.overlap == pytest.approx(torch.minimum(p, cold_q).sum().item())
    assert result.argmax == pytest.approx(p[2].item())


def test_the_targets_logits_are_scaled_as_it_scales_them():
    result = judged((P.log() / 2).softmax(dim=0), scale=0.5)
    assert result.acceptance == 1.0
    assert result.overlap == pytest.approx(1.0)


def test_tokens_outside_the_draft_vocabulary_are_misses():
    result = judged(torch.tensor([0.6, 0.4]), torch.tensor([0, 2]))
    assert 0.5 < result.acceptance <= 0.7 + 0.025
    assert result.overlap == pytest.approx(0.7)
    assert result.argmax == pytest.approx(0.5)
