"""Probabilistic drafts: drawn from the head's distribution, which the rejection sampler hears.

vLLM's rejection sampler keeps a draft with probability ``min(1, p/q)`` of target to head
(Leviathan, Kalman and Matias, arXiv 2211.17192), so that the output has the target's
distribution whatever the head's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_ppsd.sampling.drafts import is_greedy, shape
from vllm_ppsd.sampling.noise import choose, exponential_noise, state


class Chances:
    """Draws drafts for sampled requests and keeps what they were drawn from.

    Args:
        token_ids: int64 [draft vocabulary], ids in the target's vocabulary.
        vocab_size: the target's.
        drafts: drafts a step, at most.
        seed: for requests without a seed of their own.
    """

    def __init__(self, token_ids: torch.Tensor, vocab_size: int, drafts: int, seed: int) -> None:
        self._token_ids, self._vocab_size, self._most = token_ids, vocab_size, drafts
        self._seed, self._drawn = seed, 0
        self._rows = 0
        self._probabilities: torch.Tensor | None = None

    def begin(self, rows: int) -> None:
        """A step of so many requests begins."""
        self._rows, self._probabilities = rows, None

    def draw(
        self,
        rows: Sequence[int],
        requests: Sequence[Any],
        positions: Sequence[int],
        drafts: torch.Tensor,
        logits: torch.Tensor,
        depth: int,
    ) -> torch.Tensor:
        """Return ``drafts``, drawn where the request is sampled.

        Args:
            rows: of the batch.
            requests: the runner's states of them.
            positions: of the drafts.
            drafts: int64, the head's most probable tokens.
            logits: float32 [rows, draft vocabulary].
            depth: how many drafts lie before these.
        """
        drawn = [i for i, r in enumerate(requests) if not is_greedy(r.sampling_params)]
        if not drawn:
            return drafts
        samplings = [requests[i].sampling_params for i in drawn]
        shaped = shape(logits[drawn], samplings)
        states = [self._state(s.seed, positions[i]) for i, s in zip(drawn, samplings, strict=True)]
        noise = exponential_noise(torch.tensor(states, device=logits.device), self._token_ids)
        drafts = drafts.clone()
        drafts[drawn] = self._token_ids[choose(shaped, noise)]
        if self._probabilities is None:
            self._probabilities = torch.zeros(
                self._rows, self._most, self._vocab_size, device=logits.device
            )
        places = torch.tensor([rows[i] for i in drawn], device=logits.device)
        self._probabilities[places[:, None], depth, self._token_ids] = shaped.softmax(dim=-1)
        return drafts

    def taken(self) -> torch.Tensor | None:
        """Return this step's distributions, float32 [rows, drafts, vocabulary]; None if none."""
        return self._probabilities

    def _state(self, own: int | None, position: int) -> int:
        if own is not None:
            return state(own, position)
        self._drawn += 1
        return state(self._seed, -self._drawn)
