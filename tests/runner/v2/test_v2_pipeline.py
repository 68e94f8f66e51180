"""Where V2 calls a stage: what the stage gets, and what becomes of its answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_stage import FakeStage
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from vllm_ppsd.drafter.drafted import DeviceTokens
from vllm_ppsd.engine.output import PPSDModelRunnerOutput, PPSDSchedulerOutput
from vllm_ppsd.protocol import Lane, Tick, Verdict
from vllm_ppsd.runner.v2.pipeline import TokensByVerdict, V2RunnerMixin

A, B = Lane("a", 3, 4, drafted=1, behind=2), Lane("b", 3, 5, length=3, drafted=2, samples=3)
SLOTS = {"a": 6, "b": 2}


class Runner:
    """Takes the place of vLLM's V2 runner: calls in its order what the mixin overrides."""

    is_first_pp_rank = True
    speculator = None

    def __init__(self) -> None:
        hidden = SimpleNamespace(method="ppsd", is_pipelined=True, num_speculative_tokens=3)
        self.vllm_config = SimpleNamespace(
            speculative_config=None, ppsd_hidden=hidden, max_concurrent_batches=2
        )
        self.device = torch.device("cpu")
        self.req_states = SimpleNamespace(
            req_id_to_index=SLOTS,
            num_computed_tokens=SimpleNamespace(gpu=torch.zeros(8, dtype=torch.int32)),
            prefill_len=SimpleNamespace(np=np.full(8, 3)),
            draft_tokens=torch.zeros(8, 0, dtype=torch.int64),
            max_num_reqs=8,
        )
        self.did: list[Any] = []
        self.decode_query_len = 4
        self.cudagraph_manager = SimpleNamespace(
            run_fullgraph=lambda graph: f"graph {graph}",
            run_pw_graph=lambda model, inputs: f"{type(model).__name__} in pieces",
        )
        self.model = Model()
        self.block_tables = SimpleNamespace(
            apply_staged_writes=lambda: self.did.append("blocks are known")
        )

    def execute_model(self, scheduler_output: Any, tensors: Any, graph: Any = None) -> Any:
        self.update_requests(scheduler_output)
        rows = SimpleNamespace(req_ids=sorted(scheduler_output.num_scheduled_tokens, reverse=True))
        if not rows.req_ids:
            return None
        inputs = self.prepare_inputs(scheduler_output, rows, None, 0)
        if graph == "pieces":
            return self.cudagraph_manager.run_pw_graph(self.model, {})
        if graph is not None:
            return self.cudagraph_manager.run_fullgraph(graph)
        return self.model(positions=inputs.positions)

    def initialize_kv_cache(self, config: Any) -> None:
        self.did.append((config, self.decode_query_len))

    def update_requests(self, scheduler_output: Any) -> None:
        self.did.append(dict(scheduler_output.scheduled_spec_decode_tokens))
        self.did.append(list(scheduler_output.scheduled_cached_reqs.num_computed_tokens))

    def prepare_inputs(self, scheduler_output: Any, rows: Any, *_: Any) -> Any:
        lengths = [scheduler_output.num_scheduled_tokens[name] for name in rows.req_ids]
        starts = np.cumsum([0, *lengths])
        self.batch = SimpleNamespace(
            req_ids=rows.req_ids,
            num_reqs=len(lengths),
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            query_start_loc_np=starts,
            positions=torch.arange(sum(lengths)),
            input_ids=torch.zeros(sum(lengths), dtype=torch.int32),
        )
        return self.batch

    def sample_tokens(self, grammar_output: Any) -> Any:
        self.postprocess_sampled(torch.tensor([2, 6]), "sampled")
        output = ModelRunnerOutput(["b", "a"], {"b": 0, "a": 1}, [[8, 9], [7]])
        return SimpleNamespace(get_output=lambda: output)

    def postprocess_sampled(self, idx_mapping: torch.Tensor, *_: Any) -> None:
        self.did.append(idx_mapping.tolist())

    def finish_requests(self, scheduler_output: Any) -> None:
        self.did.append("finished ones are gone")

    def free_states(self, scheduler_output: Any) -> None:
        pass

    def add_requests(self, scheduler_output: Any) -> None:
        self.did.append("new ones are there")


class Model:
    def __call__(self, **inputs: Any) -> Any:
        return "states"

    def make_empty_intermediate_tensors(self, **sizes: Any) -> Any:
        return "zeros"


class Mixed(V2RunnerMixin, Runner):
    model_config = SimpleNamespace(dtype=torch.float32)


class Stage(FakeStage):
    """Begins every tick but the last stage's stale ones, and drafts two tokens behind a root."""

    def begin(self, tick: Tick) -> bool:
        return not self.samples or super().begin(tick)

    def entering(self, tick: Tick, rows: Any) -> Any:
        return {lane.request_id: [20, 21] for lane in tick.reentries}


def runner(stage: Stage) -> Any:
    mixed: Any = Mixed()
    mixed.make_port()
    mixed.ppsd_stage = stage
    return mixed


def step(*lanes: Lane) -> PPSDSchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.num_scheduled_tokens = {lane.request_id: lane.length for lane in lanes}
    cached = output.scheduled_cached_reqs
    cached.req_ids = [lane.request_id for lane in lanes]
    cached.new_token_ids = [[] if lane.behind is not None else [9] for lane in lanes]
    cached.num_computed_tokens = [0 for _ in lanes]
    return PPSDSchedulerOutput.of(output, Tick(3, lanes))


def test_lanes_stand_where_the_tick_says_and_embed_what_stage_0_drafted():
    first = runner(stage := Stage())
    assert first.execute_model(step(A, B)) == "states"
    assert first.did == [{"b": [-1, -1]}, [4, 5]], "rows that sample, and positions"
    assert first.req_states.num_computed_tokens.gpu.tolist() == [0, 0, 5, 0, 0, 0, 4, 0]
    assert first.batch.input_ids.tolist() == [9, 20, 21, 4]
    batch = stage.calls[0]
    assert batch.lanes == (B, A)
    assert (batch.last.dtype, batch.last.tolist()) == (torch.int64, [2, 3])
    first.after_send()
    assert stage.calls[1:] == ["executed", ("sent", "states")]
    assert first._step.states is None, "nothing of a tick is kept"


def test_tokens_of_the_device_are_embedded_without_a_look_at_them():
    def look() -> Any:
        raise AssertionError("the host waits")

    first = runner(stage := Stage())
    stage.inputs = lambda tick: {"a": DeviceTokens(torch.tensor([30]), look)}
    stage.entering = lambda tick, rows: {"b": DeviceTokens(torch.tensor([31, 32]), look)}
    first.execute_model(step(A, B))
    assert first.batch.input_ids.tolist() == [9, 31, 32, 30]


def test_a_graph_of_a_tick_is_replayed_within_the_stage():
    first = runner(stage := Stage())
    assert first.execute_model(step(A), graph=1) == "graph 1"
    assert stage.calls[-1] == "executed"
    assert isinstance(first.cudagraph_manager, SimpleNamespace), "vLLM's own are back"
    assert isinstance(first.model, Model)


def test_pieces_run_within_the_stage_whether_they_call_the_model_or_not():
    first = runner(stage := Stage())
    assert first.execute_model(step(A), graph="pieces") == "Model in pieces"
    assert stage.calls[-1] == "executed"


def test_graphs_of_whole_ticks_are_for_lanes_of_one_token():
    mixed = runner(Stage())
    mixed.initialize_kv_cache("config")
    assert mixed.did == [("config", 1)]
    assert mixed.decode_query_len == 4


def test_a_middle_stage_has_sent_before_v2_copies_what_has_come():
    middle = runner(stage := Stage())
    middle.is_first_pp_rank = False
    middle.execute_model(step(A))
    assert stage.calls[0] == "sends are done"


def test_prompts_are_no_business_of_the_stage():
    first = runner(Stage())
    first.execute_model(step(Lane("a", 3, 1, length=2, samples=0)))
    assert first.batch.input_ids.tolist() == [0, 0]


def test_a_tick_that_need_not_run_sends_zeros():
    first = runner(stage := Stage(stale=frozenset({"a"})))
    assert first.execute_model(step(A)) == "zeros"
    first.after_send()
    assert stage.calls[-1] == ("sent", None)


def test_a_tick_of_stale_lanes_ends_on_the_last_stage():
    last = runner(Stage(samples=True, stale=frozenset({"a"})))
    last.is_first_pp_rank = False
    tensors = SimpleNamespace(wait_for_comm=lambda: last.did.append("taken in"))
    assert last.execute_model(step(A), tensors) is None
    kept = ["taken in", "finished ones are gone", "new ones are there"]
    assert last.did == [*kept, {}, [4], "blocks are known"]
    output = last.sample_tokens(None)
    assert isinstance(output, PPSDModelRunnerOutput)
    assert output.sampled_token_ids == [[]]


def test_stale_rows_leave_no_trace():
    last = runner(stage := Stage(samples=True, stale=frozenset({"b"})))
    last.is_first_pp_rank = False
    last.execute_model(step(A, B))
    output = last.sample_tokens(None)
    assert last.did[-1] == [-1, 6]
    assert stage.calls[-1] == {"a": [7], "b": []}
    assert output.verdict == Verdict(3)
    assert last.batch.input_ids.tolist() == [0, 0, 0, 0], "only stage 0 embeds"


@pytest.mark.parametrize("samples", [False, True])
def test_steps_of_vllms_warm_up_pass_by(samples: bool):
    mixed = runner(stage := Stage(samples))
    output = SchedulerOutput.make_empty()
    output.num_scheduled_tokens = {"a": 1}
    assert mixed.execute_model(output) == "states"
    assert mixed.sample_tokens(None).get_output().req_ids == ["b", "a"]
    assert stage.calls == []


def test_lanes_have_room():
    mixed = runner(Stage())
    assert mixed.num_speculative_steps == 3
    assert mixed.req_states.draft_tokens.shape == (8, 3)
    assert isinstance(mixed.pp_handler, TokensByVerdict)


def test_nothing_is_broadcast():
    handler = TokensByVerdict()
    handler.on_req_idx_freed(1)
    handler.broadcast(1, 2, 3, 4)
    handler.broadcast_drafts(1)
    assert handler.get_prev_sampled_outputs() is None
    assert handler.receive(None, recv_drafts=True)
    assert handler.relay_aux_hidden_states(None, "output") == "output"
