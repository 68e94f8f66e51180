"""A stage that has failed says so by its number, and runs no further."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.output import SchedulerOutput

from vllm_ppsd.engine.output import PPSDSchedulerOutput
from vllm_ppsd.protocol import Tick
from vllm_ppsd.worker import worker
from vllm_ppsd.worker.worker import PPSDWorkerMixin, StageError


class Stock:
    """Takes the place of vLLM's worker."""

    def __init__(self) -> None:
        self.ppsd, self._pp_send_work = SimpleNamespace(sends=[]), []
        self._mixin = SimpleNamespace(after_send=lambda: self.seen.append("sent"))
        self.seen: list[Any] = []

    def execute_model(self, scheduler_output: Any) -> Any:
        what = scheduler_output.finished_req_ids.copy().pop()
        self.seen.append(what)
        if what == "bad":
            raise KeyError("residual")
        return what

    def sample_tokens(self, grammar_output: Any) -> Any:
        self.seen.append("sampled")
        return "token"


class Worker(PPSDWorkerMixin, Stock):
    def __init__(self) -> None:
        Stock.__init__(self)


def step(what: str) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.finished_req_ids = {what}
    return output


def tick(what: str) -> PPSDSchedulerOutput:
    return PPSDSchedulerOutput.of(step(what), Tick(0, ()))


def test_a_step_of_vllms_warm_up_passes_by():
    stage = Worker()
    assert stage.execute_model(step("warm-up")) == "warm-up"
    assert stage.seen == ["warm-up"], "no stage is told that anything was sent"


def test_a_step_that_failed_is_the_last(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "get_pp_group", lambda: SimpleNamespace(rank_in_group=1))
    stage = Worker()
    assert stage.execute_model(tick("good")) == "good"
    assert stage.sample_tokens(None) == "token"
    with pytest.raises(StageError, match="stage 1: KeyError: 'residual'") as failed:
        stage.execute_model(tick("bad"))
    assert isinstance(failed.value.__cause__, KeyError)
    for call in (lambda: stage.sample_tokens(None), lambda: stage.execute_model(tick("good"))):
        with pytest.raises(StageError, match="stage 1: KeyError: 'residual'"):
            call()
    assert stage.seen == ["good", "sent", "sampled", "bad"]
