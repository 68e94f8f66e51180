"""Tests that run on each of vLLM's model runners."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import vllm.config.vllm

from support import v2


def _on(*runners: object) -> list[pytest.MarkDecorator]:
    return [
        pytest.mark.usefixtures("runner"),
        pytest.mark.parametrize("runner", runners, indirect=True, scope="module"),
    ]


BOTH = _on("V1", "V2")
V2 = _on("V2")
V2_IN_LONG_RUNS = _on("V1", pytest.param("V2", marks=pytest.mark.long))


def runs_on(marks: list[pytest.MarkDecorator]) -> Callable[[Any], Any]:
    """Let one test of a module run on these runners."""
    return lambda test: reduce(lambda marked, mark: mark(marked), marks, test)


def use(patch: pytest.MonkeyPatch, runner: str) -> None:
    """Let engines that start from now on, in whatever process, use a runner."""
    patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(runner == "V2")))
    if runner == "V2":
        patch.setattr(vllm.config.vllm, "HAS_TRITON", True)
        patch.setenv("PYTHONPATH", v2.PYTHON_PATH)
        v2.register()
