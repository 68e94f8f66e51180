"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import runners
from support.heads import with_steps
from support.reference import Reference
from support.tiny import calmed, make_tiny_model

from vllm_ppsd.exit_head.create import init_head


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a lens head for exit layer 3 in its folder."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "llama")
    init_head(str(folder), folder / "ppsd", exit_layer=3)
    return folder


@pytest.fixture(scope="session")
def going_on(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head that goes on and is often right."""
    folder = calmed(tiny_llama, tmp_path_factory.mktemp("calmed") / "llama")
    init_head(str(folder), folder / "one", exit_layer=3, head_type="transformer")
    reference = Reference(folder)
    prompts = [[5, 6, 7], [9, 9], *(list(range(start, start + 40)) for start in (9, 100, 200, 300))]
    texts = [[*prompt, *reference.greedy(prompt, 60)] for prompt in prompts]
    with_steps(folder / "one", folder / "ppsd", 4, texts, folder)
    return folder


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The model runner that engines use, of ``support.runners``."""
    with pytest.MonkeyPatch.context() as patch:
        runners.use(patch, request.param)
        yield request.param


@pytest.fixture(scope="module")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One rank of vLLM in this process, without an engine."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    file = tmp_path_factory.mktemp("ranks") / "store"
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, f"file://{file}", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model, where the Makefile has prepared it."""
    folder = os.environ.get("PPSD_DEMO_MODEL")
    if not folder:
        pytest.skip("PPSD_DEMO_MODEL does not name the demo model; `make e2e` prepares it")
    return Path(folder)
