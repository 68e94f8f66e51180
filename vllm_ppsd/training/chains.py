"""Chains of continuations in training: where they start, and what they attend to.

A chain starts at a row, with step 1 behind the exit state there. Step s stands s - 1 positions
further on. It sees the entries made from exit states up to the row, and the chain's own entries
of steps 2 to s: in serving the entries of exit states behind the row do not exist yet. The steps
of all chains of a batch run together; teacher forcing gives each the text's own token.
(The scheme is that of EAGLE-3's training, arXiv 2503.01840, section 3.2, with exit states in
step 1.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.packing import masked_attention


@dataclass(frozen=True)
class Chains:
    """The chains of a batch.

    Attributes:
        steps: of each chain, step 1 included.
        starts: int64 [chains], indices of the batch's rows; ascending.
        spans: per document, its tokens from, to; and its chains from, to.
        tokens: int64 [steps - 1, chains], what each continuation embeds.
        known: [chains, hidden], the target's final states at the starts, for the chains that go
            on from them in place of the head's own prediction.
        is_known: bool [chains, 1], which do.
    """

    steps: int
    starts: torch.Tensor
    spans: tuple[tuple[int, int, int, int], ...]
    tokens: torch.Tensor
    known: torch.Tensor | None = None
    is_known: torch.Tensor | None = None

    def rows(self, step: int) -> torch.Tensor:
        """Return the batch's rows whose next tokens a step drafts, int64 [chains]."""
        return self.starts + (step - 1)


def chains_of(batch: Batch, steps: int, known: float = 0.0, seed: int = 0) -> Chains:
    """Return a chain from every row that has ``steps - 1`` rows of its document behind it.

    Args:
        batch: the rows of a document are consecutive tokens.
        steps: of each chain.
        known: share of the chains, drawn at random, that go on from the target's final state;
            above 0 the batch needs ``final``.
        seed: of that draw.
    """
    device = batch.rows.device
    ends = torch.tensor(batch.lengths).cumsum(0)
    document = torch.searchsorted(ends, batch.rows.cpu(), right=True)
    every = torch.arange(max(0, len(batch.rows) - steps + 1))
    starts = every[document[every] == document[every + steps - 1]]
    edges = torch.searchsorted(document[starts], torch.arange(len(ends) + 1)).tolist()
    bounds = [0, *ends.tolist()]
    spans = tuple(
        (bounds[i], bounds[i + 1], edges[i], edges[i + 1])
        for i in range(len(ends))
        if edges[i + 1] > edges[i]
    )
    starts = starts.to(device)
    tokens = [batch.next[starts + done] for done in range(steps - 1)]
    final = is_known = None
    if known:
        assert batch.final is not None
        final = batch.final[starts].float()
        drawn = torch.rand(len(starts), 1, generator=torch.Generator().manual_seed(seed))
        is_known = drawn.to(device) < known
    nothing = batch.next.new_zeros(0, len(starts))
    return Chains(steps, starts, spans, torch.stack(tokens) if tokens else nothing, final, is_known)


class ChainEntries:
    """The key/value entries of one pass over a batch's chains, per attention module.

    Args:
        chains: the chains.
        rows: int64 [rows], the batch's rows among its tokens.

    Attributes:
        step: the step under way; step 1 leaves the entries of exit states here.
    """

    def __init__(self, chains: Chains, rows: torch.Tensor) -> None:
        self._chains, self._at = chains, rows[chains.starts]
        self._true: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: dict[Any, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.step = 1

    def keep(self, module: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the entries of exit states, each [1, key/value heads, tokens, head size]."""
        self._true[module] = key, value

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None,
        soft_cap: float | None,
    ) -> torch.Tensor:
        """Attend in a continuation; arguments as of ``packed_attention``, one row a chain."""
        own = self._own.setdefault(module, [])
        own.append((key, value))
        attended = []
        for start, end, first, last in self._chains.spans:
            here = slice(first, last)
            keys, values = (
                torch.cat([true[:, :, start:end], *(pair[i][:, :, here] for pair in own)], dim=2)
                for i, true in enumerate(self._true[module])
            )
            seen = self._seen(start, end, here, len(own), window)
            attended.append(
                masked_attention(query[:, :, here], keys, values, seen, scale, soft_cap)
            )
        return torch.cat(attended, dim=2).transpose(1, 2)

    def _seen(
        self, start: int, end: int, here: slice, own: int, window: int | None
    ) -> torch.Tensor:
        """Return which keys of a document each of its chains sees, bool [chains, keys]."""
        at = self._at[here, None]
        place = torch.arange(start, end, device=at.device)[None]
        true = place <= at
        if window is not None:
            true &= place > at + own - window
        diagonal = torch.eye(len(at), dtype=torch.bool, device=at.device)
        steps = [
            diagonal if window is None or back < window else diagonal & False
            for back in range(own - 1, -1, -1)
        ]
        return torch.cat([true, *steps], dim=1)
