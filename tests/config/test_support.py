"""What is refused before weights are loaded, for the platform that the process runs on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm.config.vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.triton_utils import importing

from vllm_ppsd.config import support
from vllm_ppsd.config.entry import ONE_DEVICE_WORKER_CLS, WORKER_CLS
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.support import check_runner
from vllm_ppsd.plugin import register


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")


def configure(folder: Path, stages: int) -> Any:
    speculation = {"method": "ppsd", "model": str(folder / "ppsd")}
    return EngineArgs(
        str(folder),
        pipeline_parallel_size=stages,
        max_model_len=256,
        enforce_eager=True,
        speculative_config=speculation,
    ).create_engine_config()


V2 = [(None, True), ("1", True)]
V1 = [(None, False), ("0", False), ("0", True)]


@pytest.mark.parametrize(("stages", "workers"), [(1, ONE_DEVICE_WORKER_CLS), (2, WORKER_CLS)])
@pytest.mark.parametrize(("variable", "triton"), [*V1, *V2])
def test_ppsd_runs_on_the_runner_that_vllm_uses(
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    triton: bool,
    stages: int,
    workers: dict[tuple[str, bool], str],
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(importing, "HAS_TRITON", triton)
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", triton)
    config = configure(tiny_llama, stages)
    is_v2 = (variable, triton) in V2
    assert config.use_v2_model_runner == is_v2
    assert config.parallel_config.worker_cls == workers["cpu", is_v2]
    check_runner(config, is_v2)


@pytest.mark.parametrize(
    ("cuda", "remedy"), [(False, "set VLLM_USE_V2_MODEL_RUNNER=0"), (True, "leave that out")]
)
def test_an_option_that_v2_does_not_support_is_refused(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, remedy: str
):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: cuda)
    with pytest.raises(PPSDConfigError, match=remedy):
        check_runner(SimpleNamespace(use_v2_model_runner=False), expects_v2=True)


@pytest.mark.parametrize("there", [False, True])
def test_a_node_with_another_runner_is_refused(monkeypatch: pytest.MonkeyPatch, there: bool):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(not there)))
    with pytest.raises(PPSDConfigError, match="VLLM_USE_V2_MODEL_RUNNER to the same value on all"):
        check_runner(SimpleNamespace(use_v2_model_runner=not there), expects_v2=there)


def test_v1_on_cuda_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    (reason,) = support._platform_reasons()
    assert "on CUDA, PPSD needs vLLM's V2 model runner" in reason


@pytest.mark.parametrize(
    ("cuda", "executor", "said"),
    [(False, "1", "is for GPUs"), (True, "0", "older Ray executor"), (True, "1", None)],
)
def test_ray_is_for_gpus_and_its_newer_executor(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, executor: str, said: str | None
):
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: cuda)
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", executor)
    parallel = SimpleNamespace(distributed_executor_backend="ray", pipeline_parallel_size=2)
    reasons = list(support._parallel_reasons(parallel))
    assert (said in reasons[0]) if said else not reasons
