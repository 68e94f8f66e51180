"""Where the V1 mixin calls the stage, with a runner that only calls itself as vLLM does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_stage import FakeStage
from vllm.v1.outputs import ModelRunnerOutput

from vllm_ppsd.protocol import Lane, Tick, Verdict
from vllm_ppsd.runner import v1, v1_pipeline
from vllm_ppsd.runner.v1_pipeline import PPSDRunnerMixin


class Runner:
    """Calls its own methods in vLLM's order."""

    def __init__(self) -> None:
        self.device, self.vllm_config = torch.device("cpu"), None
        self.model_config, self.max_num_tokens = SimpleNamespace(dtype=torch.float32), 8
        self.intermediate_tensors = "allocated"
        self.model = SimpleNamespace(
            make_empty_intermediate_tensors=lambda batch_size, dtype, device: ("zeros", batch_size)
        )
        state = SimpleNamespace(num_prompt_tokens=3, output_token_ids=[])
        self.requests = {"a": state, "b": state}
        self.input_batch = SimpleNamespace(
            # Rows need not be in the scheduler's order.
            req_ids=["b", "a"],
            req_id_to_index={"b": 0, "a": 1},
            num_reqs=2,
            num_tokens_no_spec=np.array([4, 4]),
            token_ids_cpu=np.zeros((2, 9), dtype=np.int32),
            is_token_ids=np.zeros((2, 9), dtype=bool),
            generators={},
            block_table=SimpleNamespace(commit_block_table=lambda rows: self.did.append("blocks")),
        )
        self.did: list[Any] = []
        self.discard_request_mask = SimpleNamespace(
            np=np.zeros(2, dtype=bool), copy_to_gpu=lambda rows: None
        )
        self.sent_inputs: Any = None

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        self._update_states(scheduler_output)
        if not scheduler_output.tick.lanes:
            return "empty"
        self._prepare_inputs(scheduler_output)
        return self._model_forward(positions=torch.tensor([5, 4]))

    def _update_states(self, scheduler_output: Any) -> None:
        self.sent_inputs = scheduler_output.scheduled_cached_reqs.new_token_ids

    def _prepare_inputs(self, scheduler_output: Any) -> Any:
        self.did.append("inputs")
        return (torch.tensor([0, 1], dtype=torch.int32),)

    def _calc_spec_decode_metadata(self, drafts: Any, ends: Any) -> Any:
        self.did.append((drafts.tolist(), ends.tolist()))
        return SimpleNamespace(logits_indices="rows")

    def _model_forward(self, positions: Any) -> Any:
        return "states"

    def sample_tokens(self, grammar_output: Any) -> Any:
        return ModelRunnerOutput(["b", "a"], {"b": 0, "a": 1}, [[], [7]])


class Mixed(PPSDRunnerMixin, Runner):
    pass


@pytest.fixture(autouse=True)
def no_vllm_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1_pipeline, "get_forward_context", lambda: "context")
    monkeypatch.setattr(v1, "get_pp_group", lambda: SimpleNamespace(is_first_rank=True))


def runner(stage: FakeStage) -> Any:
    mixed: Any = Mixed()
    mixed.make_port()
    mixed.ppsd_stage = stage
    return mixed


def step(*lanes: Lane) -> Any:
    cached = SimpleNamespace(
        req_ids=[lane.request_id for lane in lanes],
        num_computed_tokens=[lane.position for lane in lanes],
        new_token_ids=[[] if lane.drafted else [9] for lane in lanes],
    )
    return SimpleNamespace(
        tick=Tick(3, lanes),
        scheduled_cached_reqs=cached,
        scheduled_spec_decode_tokens={lane.request_id: [-1] * lane.drafted for lane in lanes},
    )


A, B = Lane("a", 3, 4, drafted=1, behind=2), Lane("b", 3, 5)


def test_a_stage_gets_the_lanes_in_the_order_of_the_rows():
    first = runner(stage := FakeStage(samples=False))
    assert first.execute_model(step(A, B)) == "states"
    assert first.sent_inputs == [[4], [9]], "the draft is filled in, the known token stays"
    batch = stage.calls[0]
    assert (batch.lanes, batch.forward_context) == ((B, A), "context")
    assert (batch.last.dtype, batch.positions.tolist()) == (torch.int64, [5, 4])
    first.after_send()
    assert stage.calls[1:] == ["executed", ("sent", "states")]
    assert first._step.states is None, "nothing of a tick is kept"


def test_a_tick_that_need_not_run_sends_zeros():
    first = runner(stage := FakeStage(samples=False, stale={"a"}))
    assert first.execute_model(step(A, B)) == ("zeros", 2)
    first.after_send()
    assert stage.calls[-1] == ("sent", None)


def test_an_empty_step_reaches_no_stage():
    first = runner(stage := FakeStage(samples=False))
    assert first.execute_model(step()) == "empty"
    first.after_send()
    assert stage.calls == []


def test_the_last_stage_samples_and_judges():
    last = runner(stage := FakeStage(samples=True, stale={"b"}))
    last.execute_model(step(A, B))
    assert last.discard_request_mask.np.tolist() == [True, False]
    output = last.sample_tokens(None)
    assert stage.calls[1:] == ["executed", "sampling", {"b": [], "a": [7]}]
    assert (output.verdict, output.sampled_token_ids) == (Verdict(3), [[], [7]])


def test_a_tick_of_stale_lanes_is_taken_in_and_not_run():
    last = runner(stage := FakeStage(samples=True, stale={"a", "b"}))
    received: list[str] = []
    states = SimpleNamespace(wait_for_comm=lambda: received.append("states"))
    assert last.execute_model(step(A, B), states) is None
    assert received == ["states"]
    assert last.sent_inputs is not None, "the batch is kept in step"
    output = last.sample_tokens(None)
    assert stage.calls == ["sampling", {"a": [], "b": []}]
    assert output.sampled_token_ids == [[], []]


ROOT = Lane("a", 3, 3, length=3, drafted=2, samples=3, after=1)


def test_what_enters_behind_a_root_is_written_before_the_inputs_are_laid_out():
    first = runner(stage := FakeStage(samples=False))
    tick = step(ROOT, B)
    tick.scheduled_cached_reqs.new_token_ids = [[9], [9]]
    first.execute_model(tick)
    assert first.sent_inputs == [[9], [9]], "the known tokens"
    assert stage.calls[0] == ["b", "a"]
    assert first.did == ["blocks", "inputs"]
    assert first.requests["a"].output_token_ids == [20, 20]
    assert first.input_batch.token_ids_cpu[1].tolist() == [0, 0, 0, 0, 20, 20, 0, 0, 0]
    assert first.input_batch.num_tokens_no_spec.tolist() == [4, 6]
    assert tick.scheduled_spec_decode_tokens == {}, "all of them are tokens like others"


def test_the_last_stage_samples_every_row_of_a_lane():
    last = runner(stage := FakeStage(samples=True))
    last.query_start_loc = SimpleNamespace(np=np.array([0, 1, 4]))
    last.lora_config = None
    stage.entering = lambda tick, rows: {}
    tick = step(ROOT, B)
    last.execute_model(tick)
    assert last.did == ["blocks", "inputs", ([0, 2], [1, 4])]
    assert tick.scheduled_spec_decode_tokens == {"a": [-1, -1], "b": []}
