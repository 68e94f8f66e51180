"""Where vLLM's V2 model runner calls a pipeline stage.

The mixin overrides the points of vLLM's tick at which a stage has something to do, and holds no
rule: the stage decides, by the tick that the scheduler made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from vllm_ppsd.engine.output import PPSDSchedulerOutput
from vllm_ppsd.hooks.marks import pipelined_config
from vllm_ppsd.runner.base import BaseMixin, Step
from vllm_ppsd.runner.port import Batch
from vllm_ppsd.runner.v2.graphs import GraphsMixin
from vllm_ppsd.runner.v2.pending import PendingSteps
from vllm_ppsd.runner.v2.port import V2PipelinePort


@dataclass
class _Step(Step):
    """With the tokens of stage 0's lanes in parts, and vLLM's ``InputBatch``."""

    tokens: dict[str, list[Sequence[int]]] = field(default_factory=dict)
    inputs: Any = None


class TokensByVerdict:
    """Takes the place of V2's ``PPHandler``, which broadcasts what the last stage sampled.

    A stage learns tokens from drafts, verdicts and the scheduler, and not in the order that V2
    counts on: a request returns after any number of steps.
    """

    def on_req_idx_freed(self, req_idx: int) -> None:
        """Nothing is on its way to a slot."""

    def get_prev_sampled_outputs(self, *_: Any) -> None:
        """Nothing has come."""

    def receive(self, input_batch: Any, recv_drafts: bool = False) -> bool:
        """Return whether every request of the batch is told its tokens: all are, otherwise."""
        return True

    def broadcast(self, *_: Any) -> None:
        """Nothing is sent."""

    def broadcast_drafts(self, *_: Any) -> None:
        """Nothing is sent."""

    def relay_aux_hidden_states(self, _: Any, output: Any) -> Any:
        """Return what the next stage is sent."""
        return output


class V2RunnerMixin(BaseMixin, GraphsMixin):
    """Calls the stage, which the worker sets, at the points of vLLM's tick that concern it."""

    _port: V2PipelinePort
    _pending: PendingSteps
    _step: _Step | None = None
    decode_query_len: int

    def make_port(self) -> V2PipelinePort:
        """Return what the stage may ask of this runner."""
        self._port = V2PipelinePort(self)
        config = pipelined_config(self.vllm_config)  # type: ignore[attr-defined]
        assert config is not None
        # A grammar's masks have so many rows for each request, whatever its lane (vLLM 0.33).
        self._port.make_room(1 + config.num_speculative_tokens)
        self.pp_handler = TokensByVerdict()
        self._pending = PendingSteps(self._port.device, self.vllm_config.max_concurrent_batches)  # type: ignore[attr-defined]
        return self._port

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        # CUDA graphs of whole ticks are for lanes of one token: the metadata of a captured batch
        # of longer ones may be that of prompts, whose buffers a replay does not keep (FlashInfer).
        longest, self.decode_query_len = self.decode_query_len, 1
        super().initialize_kv_cache(*args, **kwargs)
        self.decode_query_len = longest

    def execute_model(
        self, scheduler_output: Any, intermediate_tensors: Any = None, **options: Any
    ) -> Any:
        execute = partial(super().execute_model, scheduler_output, intermediate_tensors, **options)  # type: ignore[misc]
        if not isinstance(scheduler_output, PPSDSchedulerOutput):
            # vLLM's own steps, of warm-up.
            self._step = None
            return execute()
        stage = self.ppsd_stage
        self._pending.begin()
        self._step = step = _Step(stage.enter(scheduler_output.tick))
        self._port.remember(scheduler_output, step.tick.left)
        if not stage.begin(step.tick):
            # The requests are kept in step, and what was sent is taken in: the stage before
            # waits for that.
            intermediate_tensors.wait_for_comm()
            self._port.update_states(scheduler_output)
            return None
        with self._calling(self._run):
            output = execute()
        if step.batch is not None:
            stage.after_execute()
        return output

    def after_send(self) -> None:
        super().after_send()
        self._pending.end()

    def sample_tokens(self, grammar_output: Any) -> Any:
        sample = partial(super().sample_tokens, grammar_output)  # type: ignore[misc]
        step = self._step
        if step is None or not self.ppsd_stage.samples or not step.tick.lanes:
            return sample()

        def counting() -> Any:
            # The one wait for the device: the verdict is what every stage waits for.
            output = sample().get_output()
            for row in self._discarded():
                output.sampled_token_ids[row] = []
            return output

        return self._judged(counting)

    def update_requests(self, scheduler_output: Any) -> None:
        step = self._step
        if step is None:
            super().update_requests(scheduler_output)  # type: ignore[misc]
            return
        inputs = self.ppsd_stage.inputs(step.tick) or {}
        cached = scheduler_output.scheduled_cached_reqs
        stands = {lane.request_id: lane.position for lane in step.tick.lanes}
        cached.num_computed_tokens = [stands[request_id] for request_id in cached.req_ids]
        # On every stage, since V2 orders rows by it.
        scheduler_output.scheduled_spec_decode_tokens = {
            lane.request_id: [-1] * (lane.samples - 1)
            for lane in step.tick.lanes
            if lane.samples > 1
        }
        super().update_requests(scheduler_output)  # type: ignore[misc]
        self._port.place(cached.req_ids, cached.num_computed_tokens)
        if not self.is_first_pp_rank:  # type: ignore[attr-defined]
            return
        for request_id, known in zip(cached.req_ids, cached.new_token_ids, strict=True):
            if self._port.decodes(request_id, stands[request_id]):
                step.tokens[request_id] = [known or inputs[request_id]]

    def prepare_inputs(self, scheduler_output: Any, batch_req_state: Any, *args: Any) -> Any:
        step, stage = self._step, self.ppsd_stage
        prepare = partial(super().prepare_inputs, scheduler_output, batch_req_state, *args)  # type: ignore[misc]
        if step is None:
            return prepare()
        rows = batch_req_state.req_ids
        step.lay_out(rows)
        self._port.lay_out(rows)
        if step.tick.reentries:
            for request_id, tokens in stage.entering(step.tick, rows).items():
                if request_id in step.tokens:
                    step.tokens[request_id].append(tokens)
        step.inputs = prepare()
        self._port.write_inputs(step.inputs, step.tokens)
        if not self.is_first_pp_rank:  # type: ignore[attr-defined]
            # V2 copies the states that have come to buffers of its own next; layers that add in
            # place have handed these very buffers on.
            stage.finish_sends()
        return step.inputs

    def postprocess_sampled(self, idx_mapping: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        idx_mapping = self._port.without(idx_mapping, self._discarded())
        super().postprocess_sampled(idx_mapping, *args, **kwargs)  # type: ignore[misc]

    def _discarded(self) -> Sequence[int]:
        """Return the rows whose samples leave no trace."""
        lanes = self._step.lanes if self._step is not None else ()
        return [row for row, lane in enumerate(lanes) if self.ppsd_stage.discards(lane)]

    def _run(self, layers: Callable[[], Any]) -> Any:
        """Let the stage run its layers, or not."""
        step = self._step
        assert step is not None
        inputs = step.inputs
        last = inputs.query_start_loc[1 : inputs.num_reqs + 1].to(torch.int64) - 1
        batch = Batch(step.tick, step.lanes, last, inputs.positions, None)
        return self._run_stage(batch, layers)

    @contextmanager
    def _calling(self, run: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
        """Let ``run`` be called where V2 calls the model or replays its CUDA graph."""
        model, graphs = self.model, self.cudagraph_manager  # type: ignore[has-type]
        self.model, self.cudagraph_manager = _Model(model, run), _Graphs(graphs, run)
        try:
            yield
        finally:
            self.model, self.cudagraph_manager = model, graphs


class _Within:
    """An object of vLLM's of which some calls go through ``run``."""

    def __init__(self, stock: Any, run: Callable[[Callable[[], Any]], Any]) -> None:
        self.stock, self._run = stock, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)


class _Model(_Within):
    def __call__(self, **inputs: Any) -> Any:
        return self._run(partial(self.stock, **inputs))


class _Graphs(_Within):
    def run_fullgraph(self, description: Any) -> Any:
        """Replay a graph of a whole tick."""
        return self._run(partial(self.stock.run_fullgraph, description))

    def run_pw_graph(self, model: _Model, inputs: dict[str, Any]) -> Any:
        """Run compiled layers, or breakable graphs, which do not call the model given."""
        return self._run(partial(self.stock.run_pw_graph, model.stock, inputs))
