"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a lens head for exit layer 3 in its folder."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "llama")
    init_head(str(folder), folder / "ppsd", exit_layer=3)
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model, where the Makefile has prepared it."""
    folder = os.environ.get("PPSD_DEMO_MODEL")
    if not folder:
        pytest.skip("PPSD_DEMO_MODEL does not name the demo model; `make e2e` prepares it")
    return Path(folder)
