"""What a proposer asks of a drafter, in a pipeline and on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from vllm_ppsd.protocol import Draft


class ExitStates(NamedTuple):
    """What a pass made behind the exit layer.

    Attributes:
        positions: int64 [tokens], in the sequences.
        hidden: [tokens, hidden], as between two layers of the target.
        residual: [tokens, hidden] or None; the state is the sum of both.
        deeper: [tokens, later stages, hidden], what a multi-depth head reads besides; None
            where there is nothing.
    """

    positions: torch.Tensor
    hidden: torch.Tensor
    residual: torch.Tensor | None
    deeper: torch.Tensor | None = None


class Wanted(NamedTuple):
    """A draft that is asked for.

    Attributes:
        row: of the request in the runner's batch.
        request_id: the engine's id.
        position: of the draft in the sequence.
        depth: how many drafts of this step lie before it.
    """

    row: int
    request_id: str
    position: int
    depth: int = 0


class Drafter(Protocol):
    """Proposes tokens. Called within the forward context of the pass that made the states."""

    def draft(
        self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]
    ) -> Sequence[Draft]:
        """Take in what a pass made, and return the drafts that are wanted.

        Args:
            states: of the whole pass; key/value entries are kept of all of it.
            last: int64 [wanted], where the token that each draft follows is among the pass's.
            wanted: the drafts; may be none.
        """

    def write_entries(self, states: ExitStates) -> None:
        """Keep key/value entries of what a pass made; draft nothing."""

    def warm_up(self, states: ExitStates) -> None:
        """Compile what a draft runs, with made-up states."""
