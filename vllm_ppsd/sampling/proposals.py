"""Stage 0's part of probabilistic drafts: drawn from the head's distribution, which is told on.

The last stage needs the distribution that a draft was drawn from
(``vllm_ppsd.sampling.rejection``). So that a message stays small, drafts are drawn from the
head's most probable tokens only: the output is the same whatever they are drawn from, and what
is left out costs few hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_ppsd.sampling.drafts import shape
from vllm_ppsd.sampling.noise import choose, exponential_noise, second

SUPPORT = 256
"""Tokens that a draft is drawn from, at most: 2 KB of a message."""


@dataclass(frozen=True)
class Proposals:
    """What a tick's sampled rows were drawn from.

    Attributes:
        rows: of the batch, one per draft that was drawn.
        token_ids: int64 [drafts, k], ids in the target's vocabulary.
        chances: float32 [drafts, k], of these tokens; they add up to 1.
    """

    rows: list[int]
    token_ids: torch.Tensor
    chances: torch.Tensor


def draw_proposals(
    logits: torch.Tensor,
    samplings: Sequence[Any],
    states: Sequence[int],
    token_ids: torch.Tensor,
    rows: Sequence[int],
) -> tuple[torch.Tensor, Proposals]:
    """Return one draft per row, and what they were drawn from.

    Args:
        logits: float32 [rows, draft vocabulary], the head's; not changed.
        samplings: each row's ``SamplingParams``, none greedy.
        states: each row's generator state for the position that is drafted.
        token_ids: int64 [draft vocabulary], ids in the target's vocabulary.
        rows: their numbers in the batch.

    Returns:
        int64 [rows], ids in the target's vocabulary; the proposals.
    """
    best, ids = support(shape(logits, samplings), token_ids)
    # The last stage's own draws must know nothing of the draft.
    generators = torch.tensor([second(s) for s in states], device=logits.device)
    drawn = choose(best, exponential_noise(generators, ids))[:, None]
    return ids.gather(1, drawn)[:, 0], Proposals(list(rows), ids, best.softmax(dim=-1))


def support(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable tokens' logits and ids, both [rows, k].

    Args:
        logits: float32 [rows, draft vocabulary].
        token_ids: int64 [draft vocabulary], ids in the target's vocabulary.
    """
    best = logits.topk(min(SUPPORT, logits.shape[-1]))
    return best.values, token_ids[best.indices]
