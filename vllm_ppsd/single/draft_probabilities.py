"""Draft probabilities: drafts drawn from a distribution that the rejection sampler is given.

vLLM's rejection sampler keeps a draft with probability ``min(1, p/q)`` of target to head
(Leviathan, Kalman and Matias, arXiv 2211.17192), so that the output has the target's
distribution whatever the head's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.sampling.drafts import draw
from vllm_ppsd.sampling.noise import state


class DraftProbabilities:
    """Draws drafts for sampled requests and keeps what they were drawn from.

    Args:
        vocab_size: the target's.
        drafts: drafts a step, at most.
        seed: for requests without a seed of their own.
    """

    def __init__(self, vocab_size: int, drafts: int, seed: int) -> None:
        self._vocab_size, self._most = vocab_size, drafts
        self._seed, self._drawn = seed, 0
        self._rows = 0
        self._probabilities: torch.Tensor | None = None

    def begin(self, rows: int) -> None:
        """A step of so many requests begins."""
        self._rows, self._probabilities = rows, None

    def draw(
        self,
        shaped: torch.Tensor,
        samplings: Sequence[Any],
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Draw, as ``vllm_ppsd.drafter.head.Draw``."""
        if self._probabilities is None:
            self._probabilities = torch.zeros(
                self._rows, self._most, self._vocab_size, device=shaped.device
            )
        rows = torch.tensor([one.row for one in wanted], device=shaped.device)
        depths = torch.tensor([one.depth for one in wanted], device=shaped.device)
        self._probabilities[rows[:, None], depths[:, None], token_ids] = shaped.softmax(dim=-1)
        states = [
            self._state(sampling.seed, one.position)
            for sampling, one in zip(samplings, wanted, strict=True)
        ]
        return draw(shaped, states, token_ids)

    def result(self) -> torch.Tensor | None:
        """Return this step's distributions, float32 [rows, drafts, vocabulary]; None if none."""
        return self._probabilities

    def _state(self, own: int | None, position: int) -> int:
        if own is not None:
            return state(own, position)
        self._drawn += 1
        return state(self._seed, -self._drawn)
