"""What is refused before weights are loaded, for the platform that the process runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.triton_utils import importing

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.plugin import register


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")


def configure(folder: Path, stages: int) -> None:
    speculation = {"method": "ppsd", "model": str(folder / "ppsd")}
    EngineArgs(
        str(folder),
        pipeline_parallel_size=stages,
        max_model_len=256,
        enforce_eager=True,
        speculative_config=speculation,
    ).create_engine_config()


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(("variable", "triton"), [(None, True), ("1", False), ("1", True)])
def test_where_vllm_would_use_its_v2_runner_the_remedy_is_named(
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    stages: int,
    variable: str | None,
    triton: bool,
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(importing, "HAS_TRITON", triton)
    with pytest.raises(PPSDConfigError, match=r"V2 model runner .* set VLLM_USE_V2_MODEL_RUNNER=0"):
        configure(tiny_llama, stages)


@pytest.mark.parametrize(("variable", "triton"), [(None, False), ("0", False), ("0", True)])
def test_where_it_uses_v1_nothing_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, triton: bool
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(importing, "HAS_TRITON", triton)
    configure(tiny_llama, 2)
