"""The exit head as a drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.interface import ExitStates, Promising, Wanted
from vllm_ppsd.exit_head.continuation import Continuation
from vllm_ppsd.exit_head.module import ExitHead, Guess
from vllm_ppsd.protocol import ON_DEVICE, Candidate, Draft
from vllm_ppsd.runner.port import RunnerPort
from vllm_ppsd.sampling.drafts import is_greedy, shape
from vllm_ppsd.to_device import on_device

Draw = Callable[[torch.Tensor, Sequence[Any], Sequence[Wanted], torch.Tensor], torch.Tensor]
"""Draws drafts of sampled requests: from logits shaped by their parameters (float32 [rows, draft
vocabulary]), their ``SamplingParams``, the drafts wanted, and the draft vocabulary's ids in the
target's (int64); returns ids in the target's vocabulary, int64 [rows]."""


class _Step(NamedTuple):
    """One draft each of some of the requests that are asked about.

    Attributes:
        places: of the requests in what is wanted.
        tokens: int64 [places], the drafts.
        probabilities: float32 [places], the head's of its most probable tokens.
    """

    places: Sequence[int]
    tokens: torch.Tensor
    probabilities: torch.Tensor


class HeadDrafter:
    """Drafts the head's most probable token, or a drawn one where the request is sampled.

    Args:
        head: the exit head.
        continuation: how it goes on; None for a head of one step.
        port: to the model runner, which knows the requests' sampling parameters.
        draw: draws the drafts of sampled requests; None to draft greedily for them, too.
        with_probabilities: whether drafts carry the head's probability of its most probable
            token.

    Attributes:
        head: as given.
        continuation: as given.
    """

    def __init__(
        self,
        head: ExitHead,
        continuation: Continuation | None,
        port: RunnerPort,
        draw: Draw | None,
        with_probabilities: bool,
    ) -> None:
        self.head, self.continuation = head, continuation
        self._port, self._draw = port, draw
        self._steps = port.continuing(continuation) if continuation is not None else None
        self._token_ids = head.token_ids
        self._with_probabilities = with_probabilities

    def draft(self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]) -> Drafted:
        if not wanted:
            self.write_entries(states)
            return Drafted.known([], last.device)
        every = [place for one in wanted for place in _again(one)]
        rows = last if len(every) == len(wanted) else _rows_of(last, wanted)
        guess = self.head(*states[:3], rows, states.deeper)
        tokens = self._choose(guess, every)
        final, probabilities = guess.final, guess.probabilities
        replaces: Sequence[int] = [0] * len(wanted)
        if len(every) > len(wanted):
            kept, replaces = _first_changes(tokens.tolist(), wanted)
            wanted = [every[row] for row in kept]
            here = on_device(kept, tokens.device)
            tokens, final, probabilities = tokens[here], final[here], probabilities[here]
        steps = [_Step(range(len(wanted)), tokens, probabilities)]
        if any(one.length > 1 for one in wanted):
            steps += self._continue(final, tokens, wanted, made=1)
        return self._drafted(steps, replaces, number=1)

    def go_on(
        self,
        final: torch.Tensor,
        tokens: Sequence[int],
        wanted: Sequence[Wanted],
        promising: Promising | None = None,
    ) -> Drafted:
        if not wanted:
            return Drafted.known([], final.device)
        known = on_device(tokens, final.device)
        steps = self._continue(final, known, wanted, made=0, promising=promising)
        return self._drafted(steps, [0] * len(wanted), number=2)

    def write_entries(self, states: ExitStates) -> None:
        self.head.write_entries(*states)

    def warm_up(self, states: ExitStates, behind_passes: bool = True) -> None:
        if behind_passes:
            self.head.warm_up(*states)
        if self.continuation is not None:
            self.continuation.warm_up(states.positions, states.hidden)

    def _continue(
        self,
        final: torch.Tensor,
        tokens: torch.Tensor,
        wanted: Sequence[Wanted],
        made: int,
        promising: Promising | None = None,
    ) -> list[_Step]:
        """Make continuations until every request has what it wants, or is not promising.

        Args:
            final: [wanted, hidden], of the positions before those of ``tokens``.
            tokens: int64 [wanted], each at ``made - 1`` behind the first draft.
            wanted: the drafts.
            made: how many drafts every request has.
            promising: as for ``go_on``.
        """
        assert self._steps is not None, "a head of one step was asked to go on"
        steps: list[_Step] = []
        places: Sequence[int] = range(len(wanted))
        doubtful: set[int] = set()
        right = [1.0] * len(wanted)
        while going := [i for i in places if wanted[i].length > made and i not in doubtful]:
            if len(going) < len(places):
                kept = [place for place, i in enumerate(places) if i in going]
                here = on_device(kept, tokens.device)
                final, tokens = final[here], tokens[here]
            places = going
            with self._steps(
                [wanted[i].row for i in places],
                [wanted[i].position + made - 1 for i in places],
                made,
                min(wanted[i].length for i in places) - made,
            ) as walk:
                for step in walk:
                    guess = step(final, tokens)
                    final = guess.final
                    tokens = self._choose(guess, [wanted[i] for i in places], made)
                    steps.append(_Step(places, tokens, guess.probabilities))
                    made += 1
                    if promising is not None:
                        for i, probability in zip(
                            places, guess.probabilities.tolist(), strict=True
                        ):
                            right[i] *= probability
                        doubtful = {i for i in places if not promising(wanted[i], right[i])}
                        if doubtful:
                            break
        return steps

    def _drafted(self, steps: Sequence[_Step], replaces: Sequence[int], number: int) -> Drafted:
        """Return what steps drafted, by request.

        Args:
            steps: the steps.
            replaces: by request, how many drafts it replaces.
            number: of the first step.
        """
        bursts: list[list[Draft]] = [[] for _ in replaces]
        of = [i for step in steps for i in step.places]
        for made, step in enumerate(steps, number):
            for i in step.places:
                bursts[i].append(Draft(ON_DEVICE, made))
        forms = [
            Candidate(tuple(burst), replaces=count)
            for burst, count in zip(bursts, replaces, strict=True)
        ]
        tokens = torch.cat([step.tokens for step in steps])
        probabilities = None
        if self._with_probabilities:
            probabilities = torch.cat([step.probabilities for step in steps])
        by_request = sorted(range(len(of)), key=of.__getitem__)
        if by_request != list(range(len(of))):
            order = on_device(by_request, tokens.device)
            tokens = tokens[order]
            probabilities = probabilities[order] if probabilities is not None else None
        return Drafted.made(forms, tokens, probabilities)

    def _choose(self, guess: Guess, wanted: Sequence[Wanted], made: int = 0) -> torch.Tensor:
        """Return the most probable drafts, replaced where the request is not greedy.

        Args:
            guess: of the head, a row per request.
            wanted: the requests, with the first of their drafts.
            made: how many drafts lie between the first and these.
        """
        if self._draw is None:
            return guess.drafts
        samplings = [self._port.sampling_params(one.request_id) for one in wanted]
        drawn = [i for i, sampling in enumerate(samplings) if not is_greedy(sampling)]
        if not drawn:
            return guess.drafts
        some = len(drawn) < len(wanted)
        of_drawn = [samplings[i] for i in drawn]
        here = [
            wanted[i]._replace(position=wanted[i].position + made, depth=wanted[i].depth + made)
            for i in drawn
        ]
        rows = on_device(drawn, guess.drafts.device)
        shaped = shape(guess.logits[rows] if some else guess.logits, of_drawn)
        tokens = self._draw(shaped, of_drawn, here, self._token_ids)
        if some:
            mixed = guess.drafts.clone()
            mixed[rows] = tokens
            return mixed
        return tokens


def _again(one: Wanted) -> list[Wanted]:
    """Return what is wanted behind each token that a request may draft behind, first to last."""
    return [one._replace(position=one.position - back) for back in range(len(one.embedded), -1, -1)]


def _rows_of(last: torch.Tensor, wanted: Sequence[Wanted]) -> torch.Tensor:
    """Return the places of all these tokens among the pass's, int64."""
    back = [back for one in wanted for back in range(len(one.embedded), -1, -1)]
    counts = [1 + len(one.embedded) for one in wanted]
    of = [row for row, count in enumerate(counts) for _ in range(count)]
    places, behind = (on_device(x, last.device) for x in (of, back))
    return last[places] - behind


def _first_changes(tokens: Sequence[int], wanted: Sequence[Wanted]) -> tuple[list[int], list[int]]:
    """Find where each request's redrafts first differ from what its pass embedded.

    Args:
        tokens: the redrafts of all requests, and each one's draft behind its last token.
        wanted: the requests.

    Returns:
        By request, the row of the first that differs, or of its last; and how many drafts that
        replaces.
    """
    rows, replaces = [], []
    start = 0
    for one in wanted:
        count = len(one.embedded)
        row = 0
        while row < count and tokens[start + row] == one.embedded[row]:
            row += 1
        rows.append(start + row)
        replaces.append(count - row)
        start += count + 1
    return rows, replaces
