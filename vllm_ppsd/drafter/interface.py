"""What a proposer asks of a drafter, in a pipeline and on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from vllm_ppsd.drafter.drafted import Drafted


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
    """Consecutive drafts of one request that are asked for.

    Attributes:
        row: of the request in the runner's batch.
        request_id: the engine's id.
        position: of the first draft in the sequence.
        depth: how many drafts of this step lie before it.
        length: how many drafts; all but the first are continuations.
        embedded: the drafts at the end of what the pass ran over, one a token. Their positions
            are drafted again, and where one comes out otherwise, it is the first draft.
    """

    row: int
    request_id: str
    position: int
    depth: int = 0
    length: int = 1
    embedded: Sequence[int] = ()


Promising = Callable[[Wanted, float], bool]
"""Whether drafting behind a draft pays, by what was wanted and the head's probability that all
drafts up to it are right."""


class Drafter(Protocol):
    """Proposes tokens. Called within the forward context of the pass that made the states."""

    def draft(self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]) -> Drafted:
        """Take in what a pass made, and return the drafts that are wanted.

        Args:
            states: of the whole pass; key/value entries are kept of all of it.
            last: int64 [wanted], where the last token of each request is among the pass's.
            wanted: the drafts; may be none.

        Returns:
            A candidate per request that is asked about, of ``length`` drafts, the first behind an
            exit state: that of the last token, or of one before it where a draft is replaced.
        """

    def go_on(
        self,
        final: torch.Tensor,
        tokens: Sequence[int],
        wanted: Sequence[Wanted],
        promising: Promising | None = None,
    ) -> Drafted:
        """Draft behind known tokens that no pass has run over yet.

        All drafts are continuations: the first from the target's final state of the token
        before the known one. Called outside the forward context of a pass. Key/value entries of
        the head are written from the known token's position on, one a draft; the next pass over
        these positions writes them again.

        Args:
            final: [wanted, hidden], the LM head's input that the known tokens were sampled from.
            tokens: the known tokens, each at ``position - 1`` of what is wanted behind it.
            wanted: the drafts.
            promising: a request drafts no more behind a draft of which this is false.

        Returns:
            A candidate per request that is asked about, of ``length`` drafts, or fewer where one
            was not promising.
        """

    def write_entries(self, states: ExitStates) -> None:
        """Keep key/value entries of what a pass made; draft nothing."""

    def warm_up(self, states: ExitStates, behind_passes: bool = True) -> None:
        """Compile what drafts run, with made-up states.

        Args:
            states: as many as the largest pass has.
            behind_passes: whether ``draft`` will be called, or no more than ``go_on``.
        """
