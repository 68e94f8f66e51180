"""What a multi-depth head reads of the tokens before: a diagonal through the pipeline.

When stage 0 has run token t, the second stage has run token t - 1, the third t - 2,
and so on: the state of token t - i behind stage i + 1 is the deepest there is of it.
Prompts go through the pipeline at once, so their tokens have none but the last, whose
states come with the first token that is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def cached_layers(exit_layer: int, deeper_layers: Sequence[int]) -> list[int]:
    """Return the layers whose states a head reads; of the last stage the final state is."""
    return [exit_layer, *deeper_layers[:-1]]


def diagonal(
    depths: Sequence[torch.Tensor], length: int, first: int, delay: int = 0
) -> torch.Tensor:
    """Return what the head reads of one document besides its exit states.

    Args:
        depths: per later stage, [answered, hidden], the states of the tokens from
            ``first`` on.
        length: tokens of the document.
        first: its first token with states: the prompt's last.
        delay: ticks by which they come late.

    Returns:
        [length, later stages, hidden]; zero where there is no state.
    """
    found = depths[0].new_zeros(length, len(depths), depths[0].shape[-1])
    for place, states in enumerate(depths):
        start = first + place + 1 + delay
        there = min(len(states), length - start)
        if there > 0:
            found[start : start + there, place] = states[:there]
    return found


def later(deeper: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return packed diagonals as they are one tick late."""
    shifted = deeper.roll(1, dims=0)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    shifted[starts] = 0
    return shifted


def disturbed(
    deeper: torch.Tensor, lengths: Sequence[int], late: float, absent: float, seed: int
) -> torch.Tensor:
    """Return diagonals in which tokens, chosen by chance, read late states or none.

    Args:
        deeper: [tokens, later stages, hidden].
        lengths: tokens per document.
        late: share of the tokens whose states come one tick late.
        absent: share of the documents without any state.
        seed: of the choice.
    """
    if not late and not absent:
        return deeper
    generator = torch.Generator().manual_seed(seed)
    is_late = torch.rand(len(deeper), generator=generator) < late
    chosen = torch.where(is_late.to(deeper.device)[:, None, None], later(deeper, lengths), deeper)
    is_there = torch.rand(len(lengths), generator=generator) >= absent
    there = is_there.repeat_interleave(torch.tensor(lengths)).to(deeper.device)
    return chosen * there[:, None, None]
