"""What the target draws at a temperature, and the noise that it is drawn with."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vllm_ppsd.sampling.noise import exponential_noise, state
from vllm_ppsd.training.head import TrainableHead

ROWS = 256
"""Rows that noise is made for at once: it is of the vocabulary's size."""


class Draws:
    """The target's logits and their noise, row by row; no two rows share noise.

    Args:
        head: whose target it is.
        lm_head: the target's, [vocabulary, hidden].
        temperature: above zero.
    """

    def __init__(self, head: TrainableHead, lm_head: torch.Tensor, temperature: float) -> None:
        self._shape, self._temperature = head.shape, temperature
        self._lm_head = lm_head[: head.config.target.vocab_size].float()
        self._every = torch.arange(len(self._lm_head), device=lm_head.device)
        self._rows = 0

    def of(self, final: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield logits at the temperature and noise, both float32 [up to ROWS, vocabulary].

        Args:
            final: [rows, hidden], the LM head's input.
        """
        for some in final.split(ROWS):
            with torch.autocast(final.device.type, enabled=False):
                logits = self._shape.apply(some.float() @ self._lm_head.T) / self._temperature
            # A generator's state for every row: any will do that no two rows share.
            states = torch.tensor([state(0, self._rows + i) for i in range(len(some))])
            self._rows += len(some)
            yield logits, exponential_noise(states.to(final.device), self._every)
