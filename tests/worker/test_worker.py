"""A stage that has failed says so by its number, and runs no further."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_ppsd.worker import worker
from vllm_ppsd.worker.worker import PPSDWorkerMixin, StageError


class Stock:
    """Takes the place of vLLM's worker."""

    def __init__(self) -> None:
        self.ppsd, self._pp_send_work = SimpleNamespace(sends=[]), []
        self._mixin = SimpleNamespace(after_send=lambda: self.seen.append("sent"))
        self.seen: list[Any] = []

    def execute_model(self, scheduler_output: Any) -> Any:
        self.seen.append(scheduler_output)
        if scheduler_output == "bad":
            raise KeyError("residual")
        return scheduler_output

    def sample_tokens(self, grammar_output: Any) -> Any:
        self.seen.append("sampled")
        return "token"


class Worker(PPSDWorkerMixin, Stock):
    def __init__(self) -> None:
        Stock.__init__(self)


def test_a_step_that_failed_is_the_last(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "get_pp_group", lambda: SimpleNamespace(rank_in_group=1))
    stage = Worker()
    assert stage.execute_model("good") == "good"
    assert stage.sample_tokens(None) == "token"
    with pytest.raises(StageError, match="stage 1: KeyError: 'residual'") as failed:
        stage.execute_model("bad")
    assert isinstance(failed.value.__cause__, KeyError)
    for step in (lambda: stage.sample_tokens(None), lambda: stage.execute_model("good")):
        with pytest.raises(StageError, match="stage 1: KeyError: 'residual'"):
            step()
    assert stage.seen == ["good", "sent", "sampled", "bad"]
