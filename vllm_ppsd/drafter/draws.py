"""How drafts for sampled requests are drawn from the head's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.sampling.drafts import draw, shape


class Draws(Protocol):
    """Draws drafts."""

    def draw(
        self,
        logits: torch.Tensor,
        samplings: Sequence[Any],
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Return one draft per row.

        Args:
            logits: float32 [rows, draft vocabulary], the head's; not changed.
            samplings: each row's ``SamplingParams``, none greedy.
            wanted: each row's draft.
            token_ids: int64 [draft vocabulary], ids in the target's vocabulary.

        Returns:
            int64 [rows], ids in the target's vocabulary.
        """


class CoupledDraws:
    """Draws with the noise that the last stage will sample with.

    Args:
        state: returns the noise generator's state for a request's token at a position.
    """

    def __init__(self, state: Callable[[str, int], int]) -> None:
        self._state = state

    def draw(
        self,
        logits: torch.Tensor,
        samplings: Sequence[Any],
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        states = [self._state(one.request_id, one.position) for one in wanted]
        return draw(shape(logits, samplings), states, token_ids)
