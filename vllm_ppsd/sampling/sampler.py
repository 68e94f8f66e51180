"""The last stage's part: vLLM's sampler, with noise that stage 0 can make too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from vllm_ppsd.sampling.noise import choose, exponential_noise


class CoupledSampler(TopKTopPSampler):
    """Takes the place of ``Sampler.topk_topp_sampler``, the last step of sampling.

    Args:
        stock: what it takes the place of.
    """

    def __init__(self, stock: TopKTopPSampler) -> None:
        torch.nn.Module.__init__(self)
        self.logprobs_mode = stock.logprobs_mode
        self._states: Sequence[int] | None = None
        self._token_ids = torch.empty(0, dtype=torch.int64)

    def expect(self, states: Sequence[int]) -> None:
        """Say the generators' states for the rows of the next call."""
        self._states = states

    def forward(
        self,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sample; arguments and results as vLLM's. The generators are not used.

        Without states, as in vLLM's warm-up, all rows have the same.
        """
        logits = apply_top_k_top_p(logits, k, p)
        processed = None
        if self.logprobs_mode == "processed_logits":
            processed = logits
        elif self.logprobs_mode == "processed_logprobs":
            processed = logits.log_softmax(dim=-1, dtype=torch.float32)
        states, self._states = self._states or [0] * len(logits), None
        if len(self._token_ids) != logits.shape[-1]:
            self._token_ids = torch.arange(logits.shape[-1], device=logits.device)
        noise = exponential_noise(torch.tensor(states, device=logits.device), self._token_ids)
        return choose(logits, noise), processed
