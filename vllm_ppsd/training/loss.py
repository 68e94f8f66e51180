"""What the head is trained on: the target's distribution, its argmax, its choices by a noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vllm_ppsd.training.chains import Chains
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.recipe import Optimisation

DIVERGENCE = Optimisation()
"""Weighs the divergence alone."""

OUTSIDE = -1
"""Draft index of a token that the head cannot draft."""

STEP_DECAY = 0.8
"""Weight of a further step's loss, relative to the step before."""

COUPLED_TOKENS = 32
"""The target's most probable tokens whose coupled choices count; all others, few, are misses.
The cost grows with it."""

NEVER = -20.0
"""Log probability of what does not happen; small enough that it moves nothing."""


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


def loss_by_steps(
    logits: Sequence[torch.Tensor],
    batch: Batch,
    chains: Chains | None,
    vocabulary: DraftVocabulary,
    weights: Optimisation,
) -> torch.Tensor:
    """Return the mean of all steps' ``distillation_loss``, each weighing less than the one before.

    Args:
        logits: of every step, as ``TrainableHead.forward`` returns them.
        chains: whose rows further steps draft behind.
    """
    total, weighed = torch.zeros((), device=batch.rows.device), 0.0
    for step, of_step in enumerate(logits, start=1):
        if not len(of_step):
            break
        targets = batch if step == 1 or chains is None else batch.at(chains.rows(step))
        weight = STEP_DECAY ** (step - 1)
        total = total + weight * distillation_loss(of_step, targets, vocabulary, weights)
        weighed += weight
    return total / weighed


def distillation_loss(
    logits: torch.Tensor, batch: Batch, vocabulary: DraftVocabulary, weights: Optimisation
) -> torch.Tensor:
    """Return the mean over rows of the weighted parts.

    ``kl · KL(target ‖ head) + ce · CE(head, target's argmax) + coupled · missed``.

    The divergence is over the target's top-k tokens that the head can draft, up to
    the target's entropy, which is constant: ``-Σ p log q``. A token outside the draft
    vocabulary adds nothing, so rows the head cannot get right weigh less. *Missed* is the
    probability that head and target choose different tokens by the same noise, down to
    different argmaxes near temperature 0; it gives no direction to a head that is far off, so
    it is for a second round.

    Args:
        logits: [rows, draft vocabulary].
        batch: the rows' targets.
        weights: whose weights of the parts count.
    """
    log_q = torch.log_softmax(logits.float(), dim=-1)
    index = vocabulary.index(batch.top_ids)
    known = index != OUTSIDE
    log_q_top = log_q.gather(1, index.clamp(min=0))
    p = batch.top_logprobs.exp() * known
    soft = -(p * log_q_top).sum(dim=1)
    hard = -log_q_top[:, 0] * known[:, 0]
    loss = weights.kl_weight * soft + weights.ce_weight * hard
    if weights.coupled_weight:
        missed = [
            1 - _coupled_hits(log_q, log_q_top, batch.top_logprobs.float(), known, temperature)
            for temperature in weights.coupled_temperatures
        ]
        loss = loss + weights.coupled_weight * torch.stack(missed).mean(dim=0)
    return loss.mean()


def _coupled_hits(
    log_q: torch.Tensor,
    log_q_top: torch.Tensor,
    log_p: torch.Tensor,
    known: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return each row's chance that the same noise makes head and target choose the same token.

    Both choose the least of ``E / p`` and of ``E / q`` with the same exponential ``E``: token
    ``v`` together with the chance ``1 / Σ_w max(p_w / p_v, q_w / q_v)``, for the first
    ``COUPLED_TOKENS`` of the top-k. The tokens outside the top-k stand in the sum as one; at a
    temperature other than 1 the top-k are taken for all that the target writes.

    Args:
        log_q: [rows, draft vocabulary], at temperature 1, as the others are.
        log_q_top: [rows, k], of the target's top-k; anything where not ``known``.
        log_p: [rows, k].
        known: [rows, k], whether the head can draft the token.
    """
    if temperature != 1:
        log_p = (log_p / temperature).log_softmax(dim=1)
        whole = (log_q / temperature).logsumexp(dim=1, keepdim=True)
        log_q_top = log_q_top / temperature - whole
    log_q_top = log_q_top.masked_fill(~known, NEVER)
    sums = [torch.cat([log, _rest(log)], dim=1) for log in (log_p, log_q_top)]
    known = known[:, :COUPLED_TOKENS]
    chosen = known.shape[1]
    ratios = [every[:, None, :] - every[:, :chosen, None] for every in sums]
    return ((-torch.maximum(*ratios).logsumexp(dim=2)).exp() * known).sum(dim=1)


def _rest(log: torch.Tensor) -> torch.Tensor:
    """Return the log of what log probabilities [rows, k] leave of 1, [rows, 1]."""
    return (1 - log.exp().sum(dim=1, keepdim=True)).clamp(min=math.exp(NEVER)).log()
