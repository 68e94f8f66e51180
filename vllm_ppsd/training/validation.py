"""How often the head's draft is the token that the target wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.head import TrainableHead
from vllm_ppsd.training.loss import DIVERGENCE, DraftVocabulary, Weights, distillation_loss

POSITIONS = (0, 16, 64, 128)
"""Where the buckets of answer positions begin, in tokens."""


def buckets() -> dict[str, tuple[int, int | None]]:
    """Return the buckets of answer positions, from and to before, by what tables call them."""
    ends = [*POSITIONS[1:], None]
    return {
        f"{first} {'on' if end is None else f'to {end - 1}'}": (first, end)
        for first, end in zip(POSITIONS, ends, strict=True)
    }


@dataclass(frozen=True)
class Validation:
    """The head on held-out text.

    Attributes:
        acceptance: share of rows whose draft is the next token of the text.
        agreement: share of rows whose draft is the target's argmax; equal to
            ``acceptance`` on greedy text.
        loss: mean distillation loss.
        by_position: acceptance per bucket of answer positions (see ``POSITIONS``), None
            where a bucket is empty.
        rows: how many drafts were judged.
    """

    acceptance: float
    agreement: float
    loss: float
    by_position: tuple[float | None, ...]
    rows: int


@torch.no_grad()
def validate(
    head: TrainableHead,
    batches: Iterable[Batch],
    vocabulary: DraftVocabulary,
    weights: Weights = DIVERGENCE,
) -> Validation:
    """Return the head's acceptance over ``batches``."""
    was_training = head.training
    head.eval()
    hits: list[torch.Tensor] = []
    agreements: list[torch.Tensor] = []
    offsets: list[torch.Tensor] = []
    loss = 0.0
    for batch in batches:
        logits = head(batch.states, batch.lengths, batch.rows, batch.deeper)
        drafts = vocabulary.tokens(logits.argmax(dim=-1))
        hits.append((drafts == batch.next).cpu())
        agreements.append((drafts == batch.top_ids[:, 0]).cpu())
        offsets.append(batch.offsets.cpu())
        loss += distillation_loss(logits, batch, vocabulary, weights).item() * len(batch.rows)
    head.train(was_training)
    hit, offset = torch.cat(hits).float(), torch.cat(offsets)
    return Validation(
        acceptance=hit.mean().item(),
        agreement=torch.cat(agreements).float().mean().item(),
        loss=loss / len(hit),
        by_position=_by_bucket(hit, offset, POSITIONS),
        rows=len(hit),
    )


def _by_bucket(
    hit: torch.Tensor, offset: torch.Tensor, starts: Sequence[int]
) -> tuple[float | None, ...]:
    bucket = torch.bucketize(offset, torch.tensor(starts), right=True) - 1
    return tuple(
        hit[bucket == i].mean().item() if (bucket == i).any() else None for i in range(len(starts))
    )
