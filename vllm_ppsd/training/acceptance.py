"""How often a head's draft is the token that the target wrote: greedy drafts, and sampled ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from vllm_ppsd.sampling.noise import choose
from vllm_ppsd.training.by_step import StepCounts, burst_tokens, count_steps
from vllm_ppsd.training.chains import chains_of
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.draws import ROWS, Draws
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DIVERGENCE, DraftVocabulary, loss_by_steps
from vllm_ppsd.training.recipe import Optimisation


@dataclass(frozen=True)
class Validation:
    """The head on held-out text.

    Attributes:
        acceptance: share of rows whose draft is the next token of the text.
        agreement: share of rows whose draft is the target's argmax; equal to
            ``acceptance`` on greedy text.
        loss: mean distillation loss.
        rows: how many drafts were judged.
        given: acceptance by step, given that all steps before were right; empty in the records
            of older versions.
        tokens: of a burst of all steps that the head is trained for, the target's included.
    """

    acceptance: float
    agreement: float
    loss: float
    rows: int
    given: list[float] = field(default_factory=list)
    tokens: float = 0.0


@torch.no_grad()
def validate(
    head: TrainableHead,
    batches: Iterable[Batch],
    vocabulary: DraftVocabulary,
    weights: Optimisation = DIVERGENCE,
) -> Validation:
    """Return the head's acceptance over ``batches``, and its loss by ``weights``."""
    was_training = head.training
    head.eval()
    hits = agreements = rows = 0
    loss = 0.0
    counts = StepCounts()
    for batch in batches:
        chains = chains_of(batch, head.config.steps)
        by_step = head(batch.states, batch.lengths, batch.rows, batch.deeper, chains)
        drafts = vocabulary.tokens(by_step[0].argmax(dim=-1))
        hits += int((drafts == batch.next).sum())
        agreements += int((drafts == batch.top_ids[:, 0]).sum())
        loss += loss_by_steps(by_step, batch, chains, vocabulary, weights).item() * len(batch.rows)
        rows += len(batch.rows)
        count_steps(counts, by_step, chains, vocabulary, batch.next)
    head.train(was_training)
    steps = counts.steps()
    return Validation(
        hits / rows,
        agreements / rows,
        loss / rows,
        rows,
        [step.given for step in steps],
        burst_tokens(steps, len(steps)),
    )


@dataclass(frozen=True)
class Sampled:
    """The head on text that the target sampled.

    Attributes:
        acceptance: share of rows where head and target, drawing with the same noise, draw
            the same token: of ``draft_sampling: coupled``.
        overlap: mean probability that the two distributions have in common, ``Σ min(p, q)``:
            of drafts drawn from the head's distribution no more can hit, and with rejection
            sampling so many do (Leviathan, Kalman and Matias, arXiv 2211.17192, theorem
            3.5): of ``draft_sampling: probabilistic``.
        argmax: mean probability with which the target draws the head's most probable
            token: of ``draft_sampling: greedy``.
        rows: how many drafts were judged.
    """

    acceptance: float
    overlap: float
    argmax: float
    rows: int


@torch.no_grad()
def judge_sampled(
    head: TrainableHead,
    batches: Iterable[Batch],
    vocabulary: DraftVocabulary,
    lm_head: torch.Tensor,
    temperature: float,
) -> Sampled:
    """Return the head's acceptance at a temperature, without top-k, top-p or min-p.

    Args:
        batches: with ``final`` set, of text sampled at ``temperature``.
        lm_head: the target's, [vocabulary, hidden].
        temperature: above zero.
    """
    head.eval()
    draws = Draws(head, lm_head, temperature)
    drawable = vocabulary.tokens(torch.arange(len(head.lm_head), device=lm_head.device))
    hits = rows = 0
    overlap = argmax = 0.0
    for batch in batches:
        assert batch.final is not None
        drafting = head(batch.states, batch.lengths, batch.rows, batch.deeper)[0]
        some = zip(draws.of(batch.final), drafting.split(ROWS), strict=True)
        for (target, noise), logits in some:
            drawn = choose(target, noise)
            drafts = drawable[choose(logits / temperature, noise[:, drawable])]
            hits += int((drafts == drawn).sum())
            p = target.softmax(dim=-1)[:, drawable]
            overlap += torch.minimum(p, (logits / temperature).softmax(dim=-1)).sum().item()
            argmax += p.gather(1, logits.argmax(dim=-1)[:, None]).sum().item()
            rows += len(target)
    return Sampled(hits / rows, overlap / rows, argmax / rows, rows)
