"""Where vLLM's V1 model runner calls a pipeline stage.

The mixin overrides the points of vLLM's tick at which a stage has something to do, and holds no
rule: the stage decides, by the tick that the scheduler made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm.forward_context import get_forward_context

from vllm_ppsd.runner.base import BaseMixin, Step
from vllm_ppsd.runner.port import Batch
from vllm_ppsd.runner.v1 import V1PipelinePort


@dataclass
class _Step(Step):
    """With where lanes end."""

    last: torch.Tensor | None = None


class PPSDRunnerMixin(BaseMixin):
    """Calls the stage, which the worker sets, at the points of vLLM's tick that concern it."""

    _port: V1PipelinePort
    _step: _Step

    def make_port(self) -> V1PipelinePort:
        """Return what the stage may ask of this runner."""
        self._port = V1PipelinePort(self)
        return self._port

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

    def sample_tokens(self, grammar_output: Any) -> Any:
        sample = partial(super().sample_tokens, grammar_output)  # type: ignore[misc]
        if not self.ppsd_stage.samples or not self._step.tick.lanes:
            return sample()

        def parked() -> Any:
            with self._port.discarded_generators_parked():
                return sample()

        return self._judged(parked)

    def _update_states(self, scheduler_output: Any) -> Any:
        inputs = self.ppsd_stage.inputs(self._step.tick)
        cached = scheduler_output.scheduled_cached_reqs
        stands = {lane.request_id: lane.position for lane in self._step.tick.lanes}
        cached.num_computed_tokens = [stands[request_id] for request_id in cached.req_ids]
        if inputs is not None:
            for i, request_id in enumerate(cached.req_ids):
                self._port.rewind(request_id, cached.num_computed_tokens[i])
                if not cached.new_token_ids[i]:
                    cached.new_token_ids[i] = list(inputs[request_id])
            # To a stage that does not sample, they are tokens like others.
            scheduler_output.scheduled_spec_decode_tokens = {}
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        step, stage, rows = self._step, self.ppsd_stage, self._port.request_ids()
        step.lay_out(rows)
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
        return self._run_stage(batch, layers)
