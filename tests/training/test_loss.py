"""The draft vocabulary and the distillation loss."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.loss import (
    DIVERGENCE,
    OUTSIDE,
    DraftVocabulary,
    distillation_loss,
    most_frequent,
)
from vllm_ppsd.training.recipe import Optimisation

CE = Optimisation(kl_weight=0, ce_weight=1)


def batch_of(top_ids: list[list[int]], p: list[list[float]]) -> Batch:
    rows = len(top_ids)
    return Batch(
        states=torch.zeros(rows, 4),
        lengths=(rows,),
        rows=torch.arange(rows),
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
    both = distillation_loss(logits, batch, vocabulary, Optimisation(kl_weight=1, ce_weight=1))
    assert both == pytest.approx(float(expected))


def missed(q: list[float], vocabulary: DraftVocabulary, *temperatures: float) -> float:
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    weights = Optimisation(kl_weight=0, coupled_weight=1, coupled_temperatures=temperatures)
    return float(distillation_loss(torch.tensor([q]).log(), batch, vocabulary, weights))


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_coupled_drafts_are_missed_as_often_as_the_same_noise_chooses_otherwise(temperature):
    generator = torch.Generator().manual_seed(0)
    target, head = torch.randn(2, 50, generator=generator) * 2
    log_p, log_q = target.log_softmax(dim=0), head.log_softmax(dim=0)
    order = log_p.argsort(descending=True)
    batch = batch_of([order.tolist()], [log_p[order].exp().tolist()])
    weights = Optimisation(kl_weight=0, coupled_weight=1, coupled_temperatures=(temperature,))
    reckoned = distillation_loss(log_q[None], batch, DraftVocabulary(None, 50), weights)
    noise = torch.empty(100_000, 50).exponential_(generator=generator)
    chosen = [(log / temperature).exp().div(noise).argmax(dim=1) for log in (log_p, log_q)]
    seen = (chosen[0] != chosen[1]).float().mean()
    assert float(reckoned) == pytest.approx(float(seen), abs=0.005)


def test_what_the_target_leaves_out_counts_as_one_token():
    # Drafts of the fourth token miss, whatever the noise.
    everything = DraftVocabulary(None, 4)
    assert missed([0.35, 0.1, 0.05, 0.5], everything, 1.0) > 0.5
    assert missed([0.2, 0.1, 0.7, 0.0], everything, 1.0) == pytest.approx(0, abs=1e-5)


def test_a_token_that_cannot_be_drafted_is_missed():
    drafted = DraftVocabulary(torch.tensor([0, 2]), 3)
    assert missed([2 / 9, 7 / 9], drafted, 1.0) == pytest.approx(0.1, abs=1e-5)


def test_near_temperature_zero_the_argmax_decides():
    everything = DraftVocabulary(None, 3)
    assert missed([0.3, 0.2, 0.5], everything, 0.05) == pytest.approx(0, abs=1e-3)
    assert missed([0.5, 0.1, 0.4], everything, 0.02) == pytest.approx(1, abs=1e-3)
    both = missed([0.5, 0.1, 0.4], everything, 0.02, 1.0)
    alone = missed([0.5, 0.1, 0.4], everything, 1.0)
    assert both == pytest.approx((1 + alone) / 2, abs=1e-3)


def test_the_rate_of_coupled_drafts_can_be_learned():
    everything = DraftVocabulary(None, 3)
    batch = batch_of([[2, 0, 1]], [[0.7, 0.2, 0.1]])
    logits = torch.tensor([[0.0, 0.5, -0.5]], requires_grad=True)
    weights = Optimisation(kl_weight=0, coupled_weight=1, coupled_temperatures=(1.0, 0.3))
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = distillation_loss(logits, batch, everything, weights)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02
    assert logits.softmax(dim=1)[0].tolist() == pytest.approx([0.2, 0.1, 0.7], abs=0.05)
