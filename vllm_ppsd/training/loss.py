"""What the head is trained on: the target's distribution and its argmax."""

from __future__ import annotations

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


def distillation_loss(
    logits: torch.Tensor, batch: Batch, vocabulary: DraftVocabulary, kl: float, ce: float
) -> torch.Tensor:
    """Return the mean over rows of ``kl · KL(target ‖ head) + ce · CE(head, target's argmax)``.

    The divergence is over the target's top-k tokens that the head can draft, up to
    the target's entropy, which is constant: ``-Σ p log q``. A token outside the draft
    vocabulary adds nothing, so rows the head cannot get right weigh less.

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
    return (kl * soft + ce * hard).mean()
