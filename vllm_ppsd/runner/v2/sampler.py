"""V2's sampler for lanes of several rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from vllm_ppsd.to_device import on_device


class LaneSampler:
    """Takes the place of V2's sampler, which does the work.

    Every row is sampled as if all drafts before it were right, with penalties and noise of its
    own position, and counts if they are. Nothing waits for the device.

    Args:
        sampler: vLLM's.
        prepare: called before each call; all rows are sampled at once.
    """

    def __init__(self, sampler: Any, prepare: Callable[[int], None]) -> None:
        self._sampler, self._prepare = sampler, prepare
        self._drafts: Sequence[Sequence[int]] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def expect(self, drafts: Sequence[Sequence[int]]) -> None:
        self._drafts = drafts

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> Any:
        """Sample; arguments and result as vLLM's. Drafts are those of ``expect``."""
        drafts, self._drafts = self._drafts, ()
        if not input_batch.num_draft_tokens:
            return self._sampler(logits, input_batch)
        self._prepare(0)
        self._write(drafts, input_batch)
        output = self._sampler(logits, input_batch)
        inputs = input_batch.input_ids[input_batch.logits_indices]
        longest = 1 + int(input_batch.num_draft_tokens_per_req.max())
        tokens, right = accepted(
            output.sampled_token_ids.view(-1), inputs, input_batch.cu_num_logits, longest
        )
        # None is sampled in a prompt's chunk.
        samples = output.num_sampled.clamp(max=1)
        num_sampled = samples * (1 + right)
        counts = input_batch.cu_num_logits.diff()
        return replace(
            output,
            sampled_token_ids=tokens,
            num_sampled=num_sampled,
            num_rejected=samples * (counts - num_sampled),
        )

    def _write(self, drafts: Sequence[Sequence[int]], input_batch: Any) -> None:
        """Write drafts to the rows that they are the input of: penalties are told by them."""
        places: list[int] = []
        tokens: list[int] = []
        for row, mine in enumerate(drafts):
            end = int(input_batch.query_start_loc_np[row + 1])
            places += range(end - len(mine), end)
            tokens += mine
        write(input_batch.input_ids, places, tokens)


def write(
    target: torch.Tensor, places: Sequence[int], values: Sequence[int] | torch.Tensor
) -> None:
    """Write integers, of the host or the device, to places of a vector on the device, without
    waiting for it."""
    if places:
        if isinstance(values, torch.Tensor):
            what = values.to(target.dtype)
        else:
            what = on_device(values, target.device, target.dtype)
        target.index_copy_(0, on_device(places, target.device), what)


def accepted(
    sampled: torch.Tensor, inputs: torch.Tensor, cu_num_logits: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare samples with the inputs that follow them.

    Args:
        sampled: int64 [rows].
        inputs: int32 [rows], each row's input token.
        cu_num_logits: int32 [lanes + 1], where the rows of lanes begin and end.
        longest: rows of the longest lane.

    Returns:
        Samples int64 [lanes, longest], of no meaning behind the lane's end; and int32 [lanes], how
        many samples of each lane, the first ones, are the input that follows.
    """
    column = torch.arange(longest, device=sampled.device)
    rows = cu_num_logits[:-1, None] + column
    last = len(sampled) - 1
    tokens = sampled[rows.clamp(max=last)]
    following = inputs[(rows + 1).clamp(max=last)]
    agrees = (tokens == following) & (rows + 1 < cu_num_logits[1:, None])
    return tokens, agrees.to(torch.int32).cumprod(dim=1).sum(dim=1).to(torch.int32)
