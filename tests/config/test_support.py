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
from vllm_ppsd.config.entry import WORKER_CLS
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


@pytest.mark.parametrize(("variable", "triton"), V2)
def test_v2_on_one_device_is_refused_with_the_remedy(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, triton: bool
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(importing, "HAS_TRITON", triton)
    with pytest.raises(PPSDConfigError, match=r"V2 model runner .* set VLLM_USE_V2_MODEL_RUNNER=0"):
        configure(tiny_llama, 1)


@pytest.mark.parametrize(("variable", "triton"), [*V1, *V2])
def test_a_pipeline_runs_on_the_runner_that_vllm_uses(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, triton: bool
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(importing, "HAS_TRITON", triton)
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", triton)
    config = configure(tiny_llama, 2)
    is_v2 = (variable, triton) in V2
    assert config.use_v2_model_runner == is_v2
    assert config.parallel_config.worker_cls == WORKER_CLS["cpu", is_v2]
    check_runner(config)


@pytest.mark.parametrize(
    ("cuda", "remedy"), [(False, "set VLLM_USE_V2_MODEL_RUNNER=0"), (True, "leave that out")]
)
def test_an_option_that_v2_does_not_support_is_refused(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, remedy: str
):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: cuda)
    with pytest.raises(PPSDConfigError, match=remedy):
        check_runner(SimpleNamespace(use_v2_model_runner=False))


def test_v1_in_a_pipeline_on_cuda_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    (reason,) = support._platform_reasons(SimpleNamespace(pipeline_parallel_size=2))
    assert "on CUDA a pipeline needs vLLM's V2 model runner" in reason
