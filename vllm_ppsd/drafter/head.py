"""The exit head as a drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vllm_ppsd.drafter.interface import ExitStates, Wanted
from vllm_ppsd.exit_head.module import ExitHead
from vllm_ppsd.protocol import Draft
from vllm_ppsd.runner.port import RunnerPort
from vllm_ppsd.sampling.drafts import is_greedy, shape

Draw = Callable[[torch.Tensor, Sequence[Any], Sequence[Wanted], torch.Tensor], torch.Tensor]
"""Draws drafts of sampled requests: from logits shaped by their parameters (float32 [rows, draft
vocabulary]), their ``SamplingParams``, the drafts wanted, and the draft vocabulary's ids in the
target's (int64); returns ids in the target's vocabulary, int64 [rows]."""


class HeadDrafter:
    """Drafts the head's most probable token, or a drawn one where the request is sampled.

    Args:
        head: the exit head.
        port: to the model runner, which knows the requests' sampling parameters.
        draw: draws the drafts of sampled requests; None to draft greedily for them, too.
        with_probabilities: whether drafts carry the head's probability of its most probable
            token.
    """

    def __init__(
        self, head: ExitHead, port: RunnerPort, draw: Draw | None, with_probabilities: bool
    ) -> None:
        self._head, self._port, self._draw = head, port, draw
        self._token_ids = head.token_ids
        self._with_probabilities = with_probabilities

    def draft(
        self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]
    ) -> Sequence[tuple[Draft, ...]]:
        if not wanted:
            self.write_entries(states)
            return []
        tokens, probabilities, logits = self._head(*states[:3], last, states.deeper)
        if self._draw is not None:
            tokens = self._drawn(self._draw, wanted, logits, tokens)
        if not self._with_probabilities:
            return [(Draft(token),) for token in tokens.tolist()]
        return [
            (Draft(token, probability=probability),)
            for token, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True)
        ]

    def go_on(
        self, final: torch.Tensor, tokens: Sequence[int], wanted: Sequence[Wanted]
    ) -> Sequence[tuple[Draft, ...]]:
        raise NotImplementedError("continuations are not served yet")

    def write_entries(self, states: ExitStates) -> None:
        self._head.write_entries(*states)

    def warm_up(self, states: ExitStates) -> None:
        self._head.warm_up(*states)

    def _drawn(
        self, draw: Draw, wanted: Sequence[Wanted], logits: torch.Tensor, best: torch.Tensor
    ) -> torch.Tensor:
        """Return ``best``, replaced where the request is not greedy."""
        samplings = [self._port.sampling_params(one.request_id) for one in wanted]
        drawn = [i for i, sampling in enumerate(samplings) if not is_greedy(sampling)]
        if not drawn:
            return best
        some = len(drawn) < len(wanted)
        of_drawn = [samplings[i] for i in drawn]
        shaped = shape(logits[drawn] if some else logits, of_drawn)
        tokens = draw(shaped, of_drawn, [wanted[i] for i in drawn], self._token_ids)
        if some:
            mixed = best.clone()
            mixed[drawn] = tokens
            return mixed
        return tokens
