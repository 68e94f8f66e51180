"""Where vLLM's V1 model runner calls a pipeline stage, for CPU and CUDA runners alike.

The mixin overrides the points of vLLM's tick at which a stage has something to do, and holds no
rule: the stage decides, by the tick that the scheduler made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.forward_context import get_forward_context

from vllm_ppsd.engine.output import PPSDModelRunnerOutput, without_tokens
from vllm_ppsd.protocol import Lane, Tick
from vllm_ppsd.runner.port import Batch
from vllm_ppsd.runner.v1 import V1PipelinePort

if TYPE_CHECKING:
    from vllm_ppsd.worker.stage import Stage


@dataclass
class _Step:
    """A tick on its way through vLLM's methods, which hand nothing on to each other."""

    tick: Tick
    lanes: tuple[Lane, ...] = ()
    last: torch.Tensor | None = None
    batch: Batch | None = None
    states: Any = None


class PPSDRunnerMixin:
    """Calls the stage, which the worker sets, at the points of vLLM's tick that concern it."""

    ppsd_stage: Stage
    _port: V1PipelinePort
    _step: _Step

    def make_port(self) -> V1PipelinePort:
        """Return what the stage may ask of this runner."""
        self._port = V1PipelinePort(self)
        return self._port

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.load()

    def _dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        output = super()._dummy_run(num_tokens, *args, **kwargs)  # type: ignore[misc]
        self.ppsd_stage.warm_up(num_tokens)
        return output

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        self._port.allocate_intermediate_tensors()
        self._step = _Step(self.ppsd_stage.enter(scheduler_output.tick))
        if not self.ppsd_stage.begin(self._step.tick):
            # The batch is kept in step, and what was sent is taken in: the stage before
            # waits for that.
            intermediate_tensors.wait_for_comm()
            self._update_states(scheduler_output)
            return None
        output = super().execute_model(scheduler_output, intermediate_tensors)  # type: ignore[misc]
        if self._step.batch is not None:
            self.ppsd_stage.after_execute()
        return output

    def after_send(self) -> None:
        """Called by the worker when what the layers made is on its way to the next stage."""
        step = self._step
        if step.batch is not None:
            self.ppsd_stage.after_send(step.batch, step.states)
        # Nothing of a tick is kept until the next one: its states may be a prompt's.
        step.states = None

    def sample_tokens(self, grammar_output: Any) -> Any:
        sample = partial(super().sample_tokens, grammar_output)  # type: ignore[misc]
        step, stage = self._step, self.ppsd_stage
        if not stage.samples or not step.tick.lanes:
            return sample()
        with stage.sampling(step.batch):
            if step.batch is None:
                output = without_tokens(step.tick)
            else:
                with self._port.discarded_generators_parked():
                    output = sample()
            tokens = dict(zip(output.req_ids, output.sampled_token_ids, strict=True))
            return PPSDModelRunnerOutput.of(output, stage.judge(step.tick, tokens))

    def _update_states(self, scheduler_output: Any) -> Any:
        inputs = self.ppsd_stage.inputs(self._step.tick)
        cached = scheduler_output.scheduled_cached_reqs
        stands = {lane.request_id: lane.position for lane in self._step.tick.lanes}
        cached.num_computed_tokens = [stands[request_id] for request_id in cached.req_ids]
        if inputs is not None:
            for i, request_id in enumerate(cached.req_ids):
                self._port.rewind(request_id, cached.num_computed_tokens[i])
                if not cached.new_token_ids[i]:
                    cached.new_token_ids[i] = inputs[request_id]
            # To a stage that does not sample, they are tokens like others.
            scheduler_output.scheduled_spec_decode_tokens = {}
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        step, stage, rows = self._step, self.ppsd_stage, self._port.request_ids()
        lanes = {lane.request_id: lane for lane in step.tick.lanes}
        step.lanes = tuple(lanes[request_id] for request_id in rows)
        if step.tick.reentries:
            self._port.commit_blocks()
            for request_id, tokens in stage.entering(step.tick, rows).items():
                self._port.append(request_id, tokens)
        prepared = super()._prepare_inputs(*args, **kwargs)  # type: ignore[misc]
        # The compiled exit head has no guards: it reads what it is given as int64.
        step.last = prepared[0].to(torch.int64)
        self._port.discard([row for row, lane in enumerate(step.lanes) if stage.discards(lane)])
        if stage.samples and any(lane.samples > 1 for lane in step.lanes):
            return self._port.sample_rows(step.lanes)
        return prepared

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        step, positions = self._step, kwargs["positions"]
        assert step.last is not None
        batch = Batch(step.tick, step.lanes, step.last, positions, get_forward_context())
        layers = partial(super()._model_forward, *args, **kwargs)  # type: ignore[misc]
        step.batch, step.states = batch, self.ppsd_stage.run(batch, layers)
        if step.states is None:
            # Whatever would be computed is computed again when the positions re-enter.
            return self._port.empty_states(positions.shape[-1])
        return step.states
