"""What stages and proposers may ask of a model runner, and the values they get from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from vllm.config import VllmConfig

from vllm_ppsd.protocol import Lane, Tick
from vllm_ppsd.sampling.seeds import SeedBook

if TYPE_CHECKING:
    from vllm_ppsd.drafter.interface import Wanted
    from vllm_ppsd.exit_head.continuation import Continuation
    from vllm_ppsd.exit_head.module import Guess
    from vllm_ppsd.worker.stage import Stage


@dataclass(frozen=True)
class Batch:
    """A tick as the runner laid it out.

    Attributes:
        tick: the tick.
        lanes: its lanes, in the order of the runner's rows.
        last: int64 [rows], where each lane's last token is among the tick's tokens.
        positions: int64 [tokens], in the sequences; padded at the end, if at all.
        forward_context: vLLM's, in which the stage's layers run; None where the port makes one of
            its own.
    """

    tick: Tick
    lanes: tuple[Lane, ...]
    last: torch.Tensor
    positions: torch.Tensor
    forward_context: Any


class SharedNoise(Protocol):
    """The noise of vLLM's sampler."""

    def expect(self, lanes: Sequence[Lane], depth: int) -> None:
        """Say which rows are sampled next: of each lane, the one behind so many drafts."""


class BurstRows(Protocol):
    """What samples lanes of several rows."""

    def expect(self, drafts: Sequence[Sequence[int]]) -> None:
        """Say, by row of the batch, which drafts the next call's lanes have behind their first
        row that samples; none of lanes that do not count."""


Continue = Callable[[torch.Tensor, torch.Tensor], "Guess"]
"""Makes one continuation step, from final states, [rows, hidden], and the tokens behind them, int64
[rows]. Logits and final states of what it returns hold until the next step."""


class ContinuationSteps(Protocol):
    """Continuation steps of some requests."""

    def __call__(
        self, rows: Sequence[int], positions: Sequence[int], depth: int, steps: int
    ) -> AbstractContextManager[Iterator[Continue]]:
        """Return a context that hands out one step after the other.

        Arguments as of ``RunnerPort.draft_context``. A step is made before the next is taken.
        """


class RunnerPort(Protocol):
    """What every role may ask of the model runner.

    Attributes:
        vllm_config: the worker's.
        device: where the layers run.
    """

    vllm_config: VllmConfig
    device: torch.device

    def model(self) -> Any:
        """Return the target, or this stage's part of it."""

    def prompt_token_ids(self, request_id: str) -> Sequence[int]:
        """Return a request's prompt."""

    def sampling_params(self, request_id: str) -> Any:
        """Return a request's ``SamplingParams``."""

    def warm_up_context(self, tokens: int) -> AbstractContextManager[Any]:
        """Return a context in which layers are compiled with so many made-up tokens."""

    def draft_context(
        self, rows: Sequence[int], positions: Sequence[int], depth: int, steps: int = 1
    ) -> AbstractContextManager[Iterator[torch.Tensor]]:
        """Return a context for layers over one token each of some requests, step by step.

        Args:
            rows: of the runner's batch.
            positions: of the first step's tokens, one per row; vLLM has allocated a slot for
                each, and for those of the steps behind.
            depth: how many drafts came before.
            steps: how many there are at most.

        Returns:
            A context that hands out an iterator. Each of its values begins a step, and is the
            positions, int64 [rows], one further on than those before.
        """

    def continuing(self, continuation: Continuation) -> ContinuationSteps:
        """Return what makes a head's continuation steps."""


class PipelinePort(RunnerPort, Protocol):
    """What a stage of a pipeline may ask besides."""

    def empty_states(self, tokens: int) -> Any:
        """Return zeros in place of what the layers hand on, for so many tokens."""

    def within(self, batch: Batch) -> AbstractContextManager[Any]:
        """Return a context in which further layers see the batch's attention metadata."""

    def draw(
        self,
        shaped: torch.Tensor,
        wanted: Sequence[Wanted],
        token_ids: torch.Tensor,
        seeds: SeedBook,
    ) -> torch.Tensor:
        """Draw drafts with the noise that the last stage will sample with.

        Args:
            shaped: float32 [rows, draft vocabulary], logits under each request's parameters.
            wanted: the draft of each row.
            token_ids: int64 [draft vocabulary], ids in the target's vocabulary.
            seeds: of the requests.

        Returns:
            int64 [rows], ids in the target's vocabulary.
        """

    def share_noise(self, seeds: SeedBook) -> SharedNoise:
        """Let vLLM's sampler draw with noise that stage 0 makes, too, by the requests' seeds."""

    def sample_bursts(self, prepare: Callable[[int], None]) -> BurstRows:
        """Let lanes of several rows be sampled.

        Args:
            prepare: called before the rows behind so many drafts are sampled, where that is done
                one after the other.
        """

    def final_states(self) -> torch.Tensor:
        """Return what the LM head has just run over, [rows, hidden]."""


class RunnerMixin(Protocol):
    """What a worker asks of its model runner, in a pipeline.

    Attributes:
        ppsd_stage: the stage that the runner calls.
    """

    ppsd_stage: Stage

    def make_port(self) -> PipelinePort:
        """Return what the stage may ask of this runner."""

    def after_send(self) -> None:
        """What a tick's layers made is on its way to the next stage."""


class Verified(NamedTuple):
    """A request of which a pass on one device has sampled.

    Attributes:
        row: of the runner's batch.
        request_id: the engine's id.
        token: the newest one, sampled behind the drafts that were accepted.
        accepted: how many those are.
        drafted: how many drafts the pass verified.
        position: of ``token`` in the sequence.
        is_first: whether that is the first token of the request's output.
        sampled_from: which of the pass's final states ``token`` was sampled from.
    """

    row: int
    request_id: str
    token: int
    accepted: int
    drafted: int
    position: int
    is_first: bool
    sampled_from: int


class SingleRunnerPort(RunnerPort, Protocol):
    """What the proposer on one device may ask besides."""

    @property
    def max_model_len(self) -> int:
        """Tokens that a sequence may have."""
