"""The draft vocabulary and the distillation loss."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.loss import (
    OUTSIDE,
    DraftVocabulary,
    distillation_loss,
    most_frequent,
)


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
    assert distillation_loss(right, batch, vocabulary, 1, 0) == pytest.approx(float(entropy))
    wrong = torch.tensor([[0.3, 0.3, 0.4]]).log()
    assert distillation_loss(wrong, batch, vocabulary, 1, 0) > entropy
    ce = distillation_loss(right, batch, vocabulary, 0, 1)
    assert ce == pytest.approx(-float(torch.tensor(0.7).log()))


def test_a_token_that_cannot_be_drafted_adds_nothing():
    vocabulary = DraftVocabulary(torch.tensor([0, 1]), 3)
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    logits = torch.zeros(1, 2)
    expected = -(0.2 + 0.1) * torch.tensor(0.5).log()
    assert distillation_loss(logits, batch, vocabulary, 1, 1) == pytest.approx(float(expected))
