"""Recorded output as a drafter, right with a chosen probability: for tests and benchmarks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from vllm.logger import init_logger

from vllm_ppsd.config.errors import PPSDConfigError, problems
from vllm_ppsd.config.ppsd import SyntheticDrafter
from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.interface import Drafter, ExitStates, Promising, Wanted
from vllm_ppsd.files import read_json_lines, write_whole
from vllm_ppsd.protocol import Candidate, Draft

logger = init_logger("vllm.plugins.ppsd")

KEPT, MENDED = 0.2, 0.6
"""Of drafts that are drafted again, behind an exit state: right ones stay with probability
acceptance ** KEPT, and wrong ones become right with acceptance * MENDED. With the head that ships
these are 0.94 and 0.42."""


def write_record(path: str | Path, outputs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Write (prompt token ids, output token ids) pairs as a record, whole or not at all."""
    lines = [
        json.dumps({"prompt_token_ids": list(prompt), "output_token_ids": list(output)}) + "\n"
        for prompt, output in outputs
    ]
    write_whole(Path(path), lambda staging: staging.write_text("".join(lines)))


class RecordedDrafter:
    """Takes the place of a drafter, which still runs if there is one: a draft costs the same.

    Args:
        outputs: recorded output tokens by prompt tokens.
        config: which drafts are right, by chance.
        vocab_size: drafts lie in ``range(vocab_size)``.
        prompt_of: returns a request's prompt tokens.
        device: that reads the drafts.
        inner: the drafter.

    Attributes:
        acceptance: probability that a draft is the recorded token.
    """

    def __init__(
        self,
        outputs: dict[tuple[int, ...], list[int]],
        config: SyntheticDrafter,
        vocab_size: int,
        prompt_of: Callable[[str], Sequence[int]],
        device: torch.device,
        inner: Drafter | None = None,
    ) -> None:
        self._outputs, self._vocab_size = outputs, vocab_size
        self.acceptance, self._seed = config.acceptance, config.seed
        self._prompt_of, self._device, self._inner = prompt_of, device, inner
        self._unknown: set[str] = set()

    def draft(self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]) -> Drafted:
        made: Sequence[Candidate] = [Candidate(())] * len(wanted)
        if self._inner is not None:
            made = self._inner.draft(states, last, wanted).candidates()
        candidates = [
            self._behind_pass(one, inner.drafts) for one, inner in zip(wanted, made, strict=True)
        ]
        return Drafted.known(candidates, self._device)

    def go_on(
        self,
        final: torch.Tensor,
        tokens: Sequence[int],
        wanted: Sequence[Wanted],
        promising: Promising | None = None,
    ) -> Drafted:
        made: Sequence[Candidate] = [Candidate(())] * len(wanted)
        if self._inner is not None:
            made = self._inner.go_on(final, tokens, wanted, promising).candidates()
        bursts = [
            Candidate(self._burst(one, inner.drafts))
            for one, inner in zip(wanted, made, strict=True)
        ]
        return Drafted.known(bursts, self._device)

    def write_entries(self, states: ExitStates) -> None:
        if self._inner is not None:
            self._inner.write_entries(states)

    def warm_up(self, states: ExitStates, behind_passes: bool = True) -> None:
        if self._inner is not None:
            self._inner.warm_up(states, behind_passes)

    def _behind_pass(self, wanted: Wanted, inner: Sequence[Draft] = ()) -> Candidate:
        """Return what is wanted behind a pass, from where a draft comes out otherwise."""
        for replaces in range(len(wanted.embedded), 0, -1):
            place = wanted.position - replaces
            again = self._recorded(wanted, place, again=True)
            if again != wanted.embedded[-replaces]:
                burst = self._burst(wanted._replace(position=place), inner)
                return Candidate((Draft(again), *burst[1:]), replaces=replaces)
        return Candidate(self._burst(wanted, inner))

    def _burst(self, wanted: Wanted, inner: Sequence[Draft] = ()) -> tuple[Draft, ...]:
        """Return the drafts that are wanted; where an inner drafter made some, as many as it."""
        drafts = len(inner) or wanted.length
        tokens = [self._recorded(wanted, wanted.position + i) for i in range(drafts)]
        if not inner:
            return tuple(Draft(token, step=1 + i) for i, token in enumerate(tokens))
        return tuple(
            Draft(token, draft.step, draft.probability)
            for token, draft in zip(tokens, inner, strict=True)
        )

    def _recorded(self, wanted: Wanted, position: int, again: bool = False) -> int:
        """Return the token recorded for a position, or by chance another one.

        Drafted again, a right draft mostly stays, and a wrong one is mended now and then.

        Past the end of the recorded output, or for a prompt that was not recorded,
        the draft is token 0, as good as wrong; the latter is logged once a request.
        """
        prompt = tuple(self._prompt_of(wanted.request_id))
        output = self._outputs.get(prompt)
        if output is None:
            if wanted.request_id not in self._unknown:
                self._unknown.add(wanted.request_id)
                logger.warning(
                    "PPSD: synthetic drafter: the prompt of request %s is not in the "
                    "record; its drafts are misses",
                    wanted.request_id,
                )
            return 0
        index = position - len(prompt)
        if index >= len(output):
            return 0
        draw = random.Random(f"{self._seed}:{hash(prompt)}:{index}").random
        is_right = draw() < self.acceptance
        if again:
            is_right = draw() < (self.acceptance**KEPT if is_right else self.acceptance * MENDED)
        right = output[index]
        # A wrong draft that is drafted again does not come out the same.
        return right if is_right else (right + 1 + again) % self._vocab_size


def read_record(path: str | Path) -> dict[tuple[int, ...], list[int]]:
    """Read a record; return output tokens by prompt tokens.

    Raises:
        PPSDConfigError: a line is no recorded output.
    """
    outputs: dict[tuple[int, ...], list[int]] = {}
    for number, entry in read_json_lines(Path(path)):
        try:
            recorded = _Recorded.model_validate(entry, strict=True)
        except ValidationError as error:
            raise PPSDConfigError(
                f"{path}, line {number}: no recorded output: {problems(error, 'the line')}"
            ) from None
        outputs[tuple(recorded.prompt_token_ids)] = recorded.output_token_ids
    return outputs


class _Recorded(BaseModel):
    prompt_token_ids: list[int]
    output_token_ids: list[int]
