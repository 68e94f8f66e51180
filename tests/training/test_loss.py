"""The draft vocabulary and the distillation loss."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.loss import (
    DIVERGENCE,
    OUTSIDE,
    DraftVocabulary,
    Weights,
    distillation_loss,
    most_frequent,
)

CE = Weights(0, 1)


def batch_of(top_ids: list[list[int]], p: list[list[float]]) -> Batch:
    rows = len(top_ids)
    return Batch(
        states=torch.zeros(rows, 4),
        lengths=(rows,),
        rows=torch.arange(rows),
        offsets=torch.arange(rows),
        next=torch.tensor([ids[0] for ids in top_ids]),
        top_ids=torch.tensor(top_ids),
        top_logprobs=torch.tensor(p).log(),
    )


def test_the_most_frequent_tokens_are_kept_ascending():
    counts = torch.tensor([1.0, 2.0, 0.0, 2.5, 4.0, 0.0])
    assert most_frequent(counts, 3).tolist() == [1, 3, 4]
    assert most_frequent(counts, 6) is None
    assert most_frequent(counts, None) is None


def test_indices_and_tokens_are_inverse():
    vocabulary = DraftVocabulary(torch.tensor([1, 3, 4]), 6)
    assert vocabulary.index(torch.tensor([4, 0, 1])).tolist() == [2, OUTSIDE, 0]
    assert vocabulary.tokens(torch.tensor([2, 0])).tolist() == [4, 1]


def test_the_loss_is_least_at_the_targets_distribution():
    vocabulary = DraftVocabulary(None, 3)
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    right = torch.tensor([[0.2, 0.1, 0.7]]).log()
    entropy = -sum(p * torch.tensor(p).log() for p in (0.7, 0.2, 0.1))
    assert distillation_loss(right, batch, vocabulary, DIVERGENCE) == pytest.approx(float(entropy))
    wrong = torch.tensor([[0.3, 0.3, 0.4]]).log()
    assert distillation_loss(wrong, batch, vocabulary, DIVERGENCE) > entropy
    ce = distillation_loss(right, batch, vocabulary, CE)
    assert ce == pytest.approx(-float(torch.tensor(0.7).log()))


def test_a_token_that_cannot_be_drafted_adds_nothing():
    vocabulary = DraftVocabulary(torch.tensor([0, 1]), 3)
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    logits = torch.zeros(1, 2)
    expected = -(0.2 + 0.1) * torch.tensor(0.5).log()
    both = distillation_loss(logits, batch, vocabulary, Weights(1, 1))
    assert both == pytest.approx(float(expected))


def missed(q: list[float], vocabulary: DraftVocabulary, *temperatures: float) -> float:
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    weights = Weights(0, 0, overlap=1, overlap_temperatures=temperatures)
    return float(distillation_loss(torch.tensor([q]).log(), batch, vocabulary, weights))


def test_what_head_and_target_do_not_have_in_common_is_missed():
    everything = DraftVocabulary(None, 3)
    assert missed([0.2, 0.1, 0.7], everything, 1.0) == pytest.approx(0, abs=1e-6)
    assert missed([0.5, 0.3, 0.2], everything, 1.0) == pytest.approx(0.5)
    drafted = DraftVocabulary(torch.tensor([0, 2]), 3)
    assert missed([0.2, 0.8], drafted, 1.0) == pytest.approx(0.1)


def test_near_temperature_zero_the_argmax_decides():
    everything = DraftVocabulary(None, 3)
    assert missed([0.3, 0.2, 0.5], everything, 0.05) == pytest.approx(0, abs=1e-3)
    assert missed([0.5, 0.1, 0.4], everything, 0.02) == pytest.approx(1, abs=1e-3)
    both = missed([0.5, 0.1, 0.4], everything, 0.02, 1.0)
    assert both == pytest.approx((1 + 0.3) / 2, abs=1e-3)
