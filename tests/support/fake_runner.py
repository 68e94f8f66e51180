"""A model runner's port without vLLM, a head that counts, and channels in a list."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from vllm import SamplingParams
from vllm.sequence import IntermediateTensors

from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.interface import ExitStates, Wanted
from vllm_ppsd.protocol import Candidate, Draft, Lane, Tick
from vllm_ppsd.runner.base import BasePort
from vllm_ppsd.runner.port import Batch
from vllm_ppsd.sampling.drafts import draw

HIDDEN = 4


def states_of(tokens: int, *names: str) -> IntermediateTensors:
    """Return what a stage hands over: ones under each name."""
    return IntermediateTensors({name: torch.ones(tokens, HIDDEN) for name in names})


class Expecting:
    """A sampler's end that remembers what it was told.

    Attributes:
        expected: the newest.
    """

    expected: Any = None

    def expect(self, *told: Any) -> None:
        self.expected = told


class FakePort:
    """Every request has the same prompt and sampling parameters."""

    max_model_len = 100

    def __init__(self, prompt: Sequence[int] = (1, 2, 3), **sampling: Any) -> None:
        self.device = torch.device("cpu")
        model = SimpleNamespace(
            get_hidden_size=lambda: HIDDEN, dtype=torch.float32, get_vocab_size=lambda: 2000
        )
        self.vllm_config: Any = SimpleNamespace(model_config=model)
        self._prompt, self._sampling = list(prompt), SamplingParams(**sampling)
        self.final = torch.zeros(0, HIDDEN)
        self.contexts: list[tuple[list[int], list[int], int]] = []

    def model(self) -> Any:
        return None

    def empty_states(self, tokens: int) -> IntermediateTensors:
        return states_of(tokens, "hidden_states", "residual")

    def prompt_token_ids(self, request_id: str) -> list[int]:
        return self._prompt

    def sampling_params(self, request_id: str) -> SamplingParams:
        return self._sampling

    def within(self, batch: Batch) -> Any:
        return nullcontext()

    def warm_up_context(self, tokens: int) -> Any:
        return nullcontext()

    def draw(self, shaped: Any, wanted: Any, token_ids: Any, seeds: Any) -> torch.Tensor:
        return draw(
            shaped, [seeds.state(one.request_id, one.position) for one in wanted], token_ids
        )

    def share_noise(self, seeds: Any) -> Any:
        return Expecting()

    def sample_bursts(self, prepare: Any) -> Any:
        return Expecting()

    def final_states(self) -> torch.Tensor:
        return self.final

    @contextmanager
    def draft_context(
        self, rows: Any, positions: Any, depth: int, steps: int = 1
    ) -> Iterator[Iterator[torch.Tensor]]:
        self.contexts.append((list(rows), list(positions), steps))
        yield (torch.tensor(positions) + step for step in range(steps))

    def continuing(self, continuation: Any) -> Any:
        return partial(BasePort._continuation_steps, self, continuation)


class FakeDrafter:
    """Drafts token 100 + position; remembers what was asked of it.

    Attributes:
        replaces: of every burst, how many drafts to replace.
        instead: by which token the first of them.
    """

    replaces, instead = 0, 99

    def __init__(self) -> None:
        self.wanted: list[list[Wanted]] = []
        self.states: list[ExitStates] = []
        self.gone_on: list[tuple[torch.Tensor, list[int], list[Wanted]]] = []

    def draft(self, states: ExitStates, last: torch.Tensor, wanted: Sequence[Wanted]) -> Any:
        self.states.append(states)
        self.wanted.append(list(wanted))
        candidates = []
        for one in wanted:
            replaces = self.replaces if one.embedded else 0
            first = one.position - replaces
            tokens = [100 + first + i for i in range(one.length)]
            if replaces:
                tokens[0] = self.instead
            drafts = tuple(Draft(token, step=1 + i) for i, token in enumerate(tokens))
            candidates.append(Candidate(drafts, replaces=replaces))
        return Drafted.known(candidates, torch.device("cpu"))

    def go_on(
        self,
        final: torch.Tensor,
        tokens: Sequence[int],
        wanted: Sequence[Wanted],
        promising: Any = None,
    ) -> Any:
        self.gone_on.append((final, list(tokens), list(wanted)))
        bursts = [
            Candidate(tuple(Draft(100 + one.position + i, step=2 + i) for i in range(one.length)))
            for one in wanted
        ]
        return Drafted.known(bursts, torch.device("cpu"))

    def write_entries(self, states: ExitStates) -> None:
        pass

    def warm_up(self, states: ExitStates, behind_passes: bool = True) -> None:
        self.states.append(states)


class FakeChannel:
    """Both ends of a channel."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()

    def send(self, message: Any, buffers: Any = (), to_first: Any = ()) -> None:
        self.messages.append((message, [bytes(one) for one in (*buffers, *to_first)]))

    def close(self) -> None:
        """Nobody waits for what does not come."""

    def ready(self) -> bool:
        return bool(self.messages)

    def receive(self, tick: int | None = None) -> Any:
        return self.receive_with_buffers(tick)[0]

    def receive_with_buffers(self, tick: int | None = None) -> Any:
        message, buffers = self.messages.popleft()
        assert tick is None or tick == message.tick
        return message, buffers


def batch_of(tick: Tick, lanes: Sequence[Lane] | None = None) -> Batch:
    """Return a tick as a runner lays it out."""
    lanes = tuple(lanes or tick.lanes)
    positions = [lane.position + i for lane in lanes for i in range(lane.length)]
    last = torch.tensor([lane.length for lane in lanes]).cumsum(0) - 1
    return Batch(tick, lanes, last, torch.tensor(positions), None)
