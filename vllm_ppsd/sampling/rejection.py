"""The last stage's part of probabilistic drafts: rejection sampling.

A draft is kept with probability ``min(1, p/q)`` of target to head, and else replaced by a draw
from what of ``p`` lies above ``q`` (Leviathan, Kalman and Matias, arXiv 2211.17192, appendix
A.1): the output has the target's distribution, and is the draft as often as the two
distributions overlap. A replaced draft is always another token, so that a hit can be told by
comparing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_ppsd.sampling.noise import exponential_noise
from vllm_ppsd.sampling.proposals import Proposals
from vllm_ppsd.sampling.sampler import CoupledSampler


class RejectionSampler(CoupledSampler):
    """Takes the place of ``Sampler.topk_topp_sampler``; rows without a proposal are as coupled."""

    _drafts: Sequence[int] = ()
    _proposals: Proposals | None = None

    def tell(self, drafts: Sequence[int], proposals: Proposals | None) -> None:
        """Say the drafts of the next call's rows, and what they were drawn from."""
        self._drafts, self._proposals = drafts, proposals

    def choose(
        self, probabilities: torch.Tensor, noise: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        proposals, self._proposals = self._proposals, None
        if proposals is None:
            return super().choose(probabilities, noise, states)
        device, rows = probabilities.device, proposals.rows
        token_ids, chances = proposals.token_ids.to(device), proposals.chances.to(device)
        drafts = torch.tensor([self._drafts[row] for row in rows], device=device)[:, None]
        judged = probabilities[rows]
        of_target = judged.gather(1, drafts)[:, 0]
        of_head = (chances * (token_ids == drafts)).sum(dim=1)
        # The number behind the last token's is uniform once it is no longer exponential.
        behind = torch.tensor([probabilities.shape[-1]], device=device)
        uniform = torch.exp(-exponential_noise(states[rows], behind)[:, 0])
        kept = uniform * of_head <= of_target
        above = judged.scatter_add(1, token_ids, -chances).clamp_(min=0)
        # Rounding may leave nothing of it, where the two distributions are the same.
        some = above.sum(dim=1, keepdim=True) > 0
        probabilities[rows] = torch.where(some, above, judged)
        drawn = super().choose(probabilities, noise, states)
        drawn[rows] = torch.where(kept, drafts[:, 0], drawn[rows])
        return drawn
