"""What the adapters to vLLM's V1 and V2 model runners have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.forward_context import set_forward_context

from vllm_ppsd.engine.output import PPSDModelRunnerOutput, without_tokens
from vllm_ppsd.protocol import Lane, Tick
from vllm_ppsd.runner.port import Batch, ContinuationSteps, Continue

if TYPE_CHECKING:
    from vllm_ppsd.exit_head.continuation import Continuation
    from vllm_ppsd.exit_head.module import Guess
    from vllm_ppsd.worker.stage import Stage


class BasePort:
    """The part of ``RunnerPort`` that is the same over V1 and V2.

    Args:
        runner: vLLM's model runner.
    """

    draft_context: Callable[..., AbstractContextManager[Iterator[torch.Tensor]]]

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.vllm_config = runner.vllm_config
        self.device = runner.device

    def model(self) -> Any:
        return self._runner.get_model()

    def empty_states(self, tokens: int) -> Any:
        return self._runner.model.make_empty_intermediate_tensors(
            batch_size=tokens, dtype=self._runner.model_config.dtype, device=self.device
        )

    @contextmanager
    def warm_up_context(self, tokens: int) -> Iterator[None]:
        with torch.inference_mode(), set_forward_context(None, self.vllm_config, num_tokens=tokens):
            yield

    def continuing(self, continuation: Continuation) -> ContinuationSteps:
        return partial(self._continuation_steps, continuation)

    @contextmanager
    def _continuation_steps(
        self,
        continuation: Callable[..., Guess],
        rows: Sequence[int],
        positions: Sequence[int],
        depth: int,
        steps: int,
    ) -> Iterator[Iterator[Continue]]:
        with self.draft_context(rows, positions, depth, steps) as walk:
            yield (partial(continuation, at) for at in walk)


@dataclass
class Step:
    """A tick on its way through vLLM's methods, which hand nothing on to each other."""

    tick: Tick
    lanes: tuple[Lane, ...] = ()
    batch: Batch | None = None
    states: Any = None

    def lay_out(self, rows: Sequence[str]) -> None:
        """Order the lanes as the runner's rows."""
        lanes = {lane.request_id: lane for lane in self.tick.lanes}
        self.lanes = tuple(lanes[request_id] for request_id in rows)


class BaseMixin:
    """Calls the stage, which the worker sets, where V1 and V2 do it alike."""

    ppsd_stage: Stage
    _port: Any
    _step: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.load()

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.warm_up(num_tokens)
        return output

    def after_send(self) -> None:
        """Called by the worker when what the layers made is on its way to the next stage."""
        step = self._step
        if step.batch is not None:
            self.ppsd_stage.after_send(step.batch, step.states)
        # Nothing of a tick is kept until the next one: its states may be a prompt's.
        step.states = None

    def _run_stage(self, batch: Batch, layers: Callable[[], Any]) -> Any:
        """Let the stage run its layers, or not; return what the next stage is sent."""
        step = self._step
        step.batch, step.states = batch, self.ppsd_stage.run(batch, layers)
        if step.states is None:
            # Whatever would be computed is computed again when the positions re-enter.
            return self._port.empty_states(batch.positions.shape[-1])
        return step.states

    def _judged(self, sample: Callable[[], Any]) -> PPSDModelRunnerOutput:
        """Return the last stage's output, with its verdict; ``sample`` makes vLLM's."""
        step, stage = self._step, self.ppsd_stage
        with stage.sampling(step.batch):
            output = without_tokens(step.tick) if step.batch is None else sample()
            tokens = dict(zip(output.req_ids, output.sampled_token_ids, strict=True))
            return PPSDModelRunnerOutput.of(output, stage.judge(step.tick, tokens))
