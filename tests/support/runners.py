"""Tests that run on each of vLLM's model runners."""

from __future__ import annotations

import pytest
import vllm.config.vllm

from support import v2

BOTH = pytest.mark.parametrize("runner", ["V1", "V2"], indirect=True, scope="module")
V2_IN_LONG_RUNS = pytest.mark.parametrize(
    "runner",
    ["V1", pytest.param("V2", marks=pytest.mark.long)],
    indirect=True,
    scope="module",
)


def use(patch: pytest.MonkeyPatch, runner: str) -> None:
    """Let engines that start from now on, in whatever process, use a runner."""
    patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(runner == "V2")))
    if runner == "V2":
        patch.setattr(vllm.config.vllm, "HAS_TRITON", True)
        patch.setenv("PYTHONPATH", v2.PYTHON_PATH)
        v2.register()
