"""What the head is trained on: the target's distribution and its argmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_ppsd.training.dataset import Batch

OUTSIDE = -1
"""Draft index of a token that the head cannot draft."""


class DraftVocabulary:
    """The tokens a head can draft, and where each of the target's tokens is among them.

    Args:
        token_ids: the drafts' ids in the target's vocabulary; None for all.
        vocab_size: the target's vocabulary.
    """

    def __init__(self, token_ids: torch.Tensor | None, vocab_size: int) -> None:
        self.token_ids = token_ids
        if token_ids is None:
            self._index = torch.arange(vocab_size)
        else:
            self._index = torch.full((vocab_size,), OUTSIDE, dtype=torch.int64)
            self._index[token_ids] = torch.arange(len(token_ids))

    def index(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return each token's index among the drafts, ``OUTSIDE`` where it has none."""
        self._index = self._index.to(tokens.device)
        return self._index[tokens]

    def tokens(self, drafts: torch.Tensor) -> torch.Tensor:
        """Return the target's token ids of draft indices."""
        if self.token_ids is None:
            return drafts
        self.token_ids = self.token_ids.to(drafts.device)
        return self.token_ids[drafts]


def most_frequent(counts: torch.Tensor, size: int | None) -> torch.Tensor | None:
    """Return the ``size`` token ids with the highest counts, ascending; None for all tokens."""
    if size is None or size >= len(counts):
        return None
    return counts.argsort(descending=True, stable=True)[:size].sort().values


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss.

    Attributes:
        kl: of the divergence from the target's distribution.
        ce: of the cross-entropy on its argmax.
        overlap: of the probability that head and target do not have in common.
        overlap_temperatures: the mean over these temperatures is taken of it.
    """

    kl: float = 1.0
    ce: float = 0.0
    overlap: float = 0.0
    overlap_temperatures: Sequence[float] = (1.0,)


DIVERGENCE = Weights()
"""The divergence alone."""


def distillation_loss(
    logits: torch.Tensor, batch: Batch, vocabulary: DraftVocabulary, weights: Weights
) -> torch.Tensor:
    """Return the mean over rows of the weighted parts.

    ``kl · KL(target ‖ head) + ce · CE(head, target's argmax) + overlap · (1 - Σ min(p, q))``.

    The divergence is over the target's top-k tokens that the head can draft, up to
    the target's entropy, which is constant: ``-Σ p log q``. A token outside the draft
    vocabulary adds nothing, so rows the head cannot get right weigh less. What is not
    common is what drafts that are drawn at that temperature must miss (total variation; see
    ``vllm_ppsd.training.sampled``), down to the argmax near temperature 0; it gives no
    direction to a head that is far off, so it is for a second round.

    Args:
        logits: [rows, draft vocabulary].
        batch: the rows' targets.
    """
    log_q = torch.log_softmax(logits.float(), dim=-1)
    index = vocabulary.index(batch.top_ids)
    known = index != OUTSIDE
    log_q_top = log_q.gather(1, index.clamp(min=0))
    p = batch.top_logprobs.exp() * known
    soft = -(p * log_q_top).sum(dim=1)
    hard = -log_q_top[:, 0] * known[:, 0]
    loss = weights.kl * soft + weights.ce * hard
    if weights.overlap:
        missed = [
            _missed(logits.float(), batch.top_logprobs, index, known, temperature)
            for temperature in weights.overlap_temperatures
        ]
        loss = loss + weights.overlap * torch.stack(missed).mean(dim=0)
    return loss.mean()


def _missed(
    logits: torch.Tensor,
    top_logprobs: torch.Tensor,
    index: torch.Tensor,
    known: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return each row's ``1 - Σ min(p, q)`` over the target's top-k at a temperature.

    Below temperature 1 the top-k tokens hold nearly all of the probability, and are taken
    for all.
    """
    p = top_logprobs.exp() if temperature == 1 else (top_logprobs / temperature).softmax(dim=1)
    scaled = logits / temperature
    q = (scaled.gather(1, index.clamp(min=0)) - scaled.logsumexp(dim=1, keepdim=True)).exp()
    return 1 - torch.minimum(p, q).mul(known).sum(dim=1)
