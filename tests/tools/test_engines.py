"""How engines are started and stopped, with a made-up ``LLM``."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_ppsd.config.cpu_binding import CORES, PARTITION
from vllm_ppsd.tools import engines


class FakeLLM:
    """Keeps what it was started with, and whether it was stopped."""

    last: FakeLLM

    def __init__(self, model: str, **options: Any) -> None:
        self.options = options
        self.variables = {name: os.environ.get(name) for name in (CORES, PARTITION)}
        self.stopped = False
        core = SimpleNamespace(shutdown=lambda: setattr(self, "stopped", True))
        self.llm_engine = SimpleNamespace(engine_core=core)
        FakeLLM.last = self


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "LLM", FakeLLM)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def test_every_stage_has_cores_and_layers_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CORES, raising=False)
    monkeypatch.setenv(PARTITION, "1,5")
    with engines.engine("m", partition=[4, 2]) as llm:
        assert llm.options["pipeline_parallel_size"] == 2
        assert llm.variables == {CORES: "0,1|2,3", PARTITION: "4,2"}
        assert os.environ[PARTITION] == "1,5", "the environment is changed for the start alone"
        assert CORES not in os.environ
    with engines.engine("m", stages=1, cores="3") as llm:
        assert llm.variables == {CORES: "3", PARTITION: None}


def test_options_go_over_the_defaults():
    with engines.engine("m", max_num_seqs=3, dtype="float32") as llm:
        assert (llm.options["max_num_seqs"], llm.options["dtype"]) == (3, "float32")
        assert llm.options["seed"] == engines.DEFAULTS["seed"]
        assert not set(engines.PPSD_ONLY) & set(llm.options)


def test_an_engine_with_ppsd_can_be_traced_and_counts_the_drafts_of_every_request():
    with engines.engine("m", stages=2, speculative_config={"method": "ppsd"}) as llm:
        assert engines.PPSD_ONLY.items() <= llm.options.items()
    with engines.engine("m", speculative_config={"method": "ngram"}) as llm:
        assert not set(engines.PPSD_ONLY) & set(llm.options)


def test_an_engine_is_stopped_even_after_an_error():
    with pytest.raises(KeyboardInterrupt), engines.engine("m"):
        raise KeyboardInterrupt
    assert FakeLLM.last.stopped


def test_nobody_always_comes_first():
    assert [engines.rotated("abc", turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
