"""Fixtures for the tests of the config."""

from __future__ import annotations

import pytest

from vllm_ppsd.exit_head.lookup import HEAD_VARIABLE
from vllm_ppsd.plugin import register


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, and no variable that changes what a config is."""
    register()
    for name in ("VLLM_PP_LAYER_PARTITION", HEAD_VARIABLE, "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
