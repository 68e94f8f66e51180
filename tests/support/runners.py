"""Tests that run on each of vLLM's model runners."""

from __future__ import annotations

from functools import cache

import pytest
import vllm.config.vllm

from support.v2 import kernels

BOTH = pytest.mark.parametrize("runner", ["V1", "V2"], indirect=True, scope="module")
V2_IN_LONG_RUNS = pytest.mark.parametrize(
    "runner",
    ["V1", pytest.param("V2", marks=pytest.mark.long)],
    indirect=True,
    scope="module",
)


def use(patch: pytest.MonkeyPatch, runner: str) -> None:
    """Let engines that start from now on, in this process or in workers, use a runner."""
    is_v2 = runner == "V2"
    patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(is_v2)))
    if is_v2:
        patch.setattr(vllm.config.vllm, "HAS_TRITON", True)
        _registered()


@cache
def _registered() -> None:
    kernels.register()
