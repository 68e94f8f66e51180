"""Races that vLLM's V2 and PPSD keep clear of, put back: a test must see each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.late.device import DEVICE, Stream, use_stream


def reuse_buffers() -> None:
    """Have buffers for two steps in flight, as plain decoding on two stages has."""
    from vllm.v1.worker.gpu import model_runner

    sized = model_runner.set_default_max_concurrency
    model_runner.set_default_max_concurrency = lambda _: sized(2)


def write_early() -> None:
    """Write to what a pending send reads."""
    from vllm_ppsd.worker.stage import Stage

    Stage.finish_sends = lambda stage: stage.sends.clear()


def copy_early() -> None:
    """Copy what has come to the buffers that a pending send reads."""
    from vllm_ppsd.runner.v2.pipeline import V2RunnerMixin
    from vllm_ppsd.worker.stage import Stage

    prepare, finish = V2RunnerMixin.prepare_inputs, Stage.finish_sends

    def prepared(*args: Any) -> Any:
        Stage.finish_sends = lambda _: None
        try:
            return prepare(*args)
        finally:
            Stage.finish_sends = finish

    V2RunnerMixin.prepare_inputs = prepared


def draft_early() -> None:
    """Run the head behind the tick's inputs, and not behind the layers that make its states."""
    from vllm_ppsd.worker.proposer import ProposerStage

    layers, draft, side = ProposerStage._run_layers, ProposerStage._draft, Stream()

    def behind_the_inputs(*args: Any) -> Any:
        side.wait_stream(DEVICE.current)
        return layers(*args)

    def on_a_stream_of_its_own(*args: Any) -> Any:
        with use_stream(side):
            drafted = draft(*args)
        DEVICE.current.wait_stream(side)
        return drafted

    ProposerStage._run_layers, ProposerStage._draft = behind_the_inputs, on_a_stream_of_its_own


def read_early() -> None:
    """Run the layers before their states have come."""
    from vllm.v1.worker.gpu_worker import AsyncIntermediateTensors

    AsyncIntermediateTensors.wait_for_comm = lambda _: None


TRAPS: dict[str, Callable[[], None]] = {
    trap.__name__: trap
    for trap in (reuse_buffers, write_early, copy_early, draft_early, read_early)
}
