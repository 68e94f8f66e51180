"""Where V2 sets up its graphs, it finds those of the head in a speculator's place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_ppsd.runner.v2.graphs import GraphsMixin
from vllm_ppsd.runner.v2.single import EarlyExitSpeculator


class Graphs:
    attn_groups = (("a group",),)

    def __init__(self) -> None:
        self.did: list[str] = []

    def init_cudagraph_manager(self, mode: str) -> None:
        self.did.append(f"set up for {mode}")

    def capture(self) -> None:
        self.did.append("captured")

    def release(self) -> None:
        self.did.append("released")


class Runner:
    """Treats a speculator as vLLM's V2 runner does."""

    def __init__(self, speculator: Any, graphs: Graphs | None) -> None:
        self.speculator = speculator
        self._port = SimpleNamespace(graphs=graphs)
        self.groups: Any = None

    def initialize_kv_cache(self, config: str, is_profiling: bool = False) -> None:
        if self.speculator is not None:
            self.speculator.init_cudagraph_manager(config)
        self.groups = getattr(self.speculator, "attn_groups", [])

    def capture_model(self, *, profile_only: bool = False) -> int:
        if self.speculator is not None:
            self.speculator.capture()
        return 7

    def shutdown(self) -> None:
        self.speculator = None


class Mixed(GraphsMixin, Runner):
    pass


@pytest.fixture(params=["pipeline", "one device"])
def mixed(request: pytest.FixtureRequest) -> Any:
    graphs = Graphs()
    runner = Mixed(None, graphs)
    if request.param == "one device":
        runner.speculator = EarlyExitSpeculator(None, runner._port, 3)  # type: ignore[arg-type]
    return runner


def test_graphs_are_set_up_and_captured_with_vllms(mixed: Any):
    before, graphs = mixed.speculator, mixed._port.graphs
    mixed.initialize_kv_cache("FULL")
    assert mixed.groups == Graphs.attn_groups, "vLLM maps their caches, too"
    assert mixed.capture_model() == 7
    assert graphs.did == ["set up for FULL", "captured"]
    assert mixed.speculator is before, "nothing is proposed by them"
    mixed.shutdown()
    assert graphs.did[2:] == ["released"]


def test_what_was_captured_to_measure_memory_is_dropped(mixed: Any):
    mixed.initialize_kv_cache("FULL", is_profiling=True)
    assert mixed.capture_model(profile_only=True) == 7
    assert mixed._port.graphs.did == ["set up for FULL", "captured", "released"]


def test_a_failure_leaves_no_speculator_behind():
    runner = Mixed(None, Graphs())
    runner._port.graphs.init_cudagraph_manager = None  # type: ignore[union-attr,method-assign,assignment]
    with pytest.raises(TypeError):
        runner.initialize_kv_cache("FULL")
    assert runner.speculator is None


@pytest.mark.parametrize("drafts", [True, False])
def test_runners_without_a_head_that_goes_on_are_vllms(drafts: bool):
    runner: Any = Mixed(None, None)
    if drafts:
        runner.speculator = EarlyExitSpeculator(None, runner._port, 3)  # type: ignore[arg-type]
    runner.initialize_kv_cache("FULL")
    assert (runner.groups, runner.capture_model()) == ([], 7)
    runner.shutdown()
