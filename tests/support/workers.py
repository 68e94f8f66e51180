"""Workers that start fast: forked off a server that has imported what they need.

vLLM's CPU platform spawns its workers, and each imports vLLM anew: ten seconds where two share two
cores. What workers do is the same; the server itself loads no plugin and starts no thread.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
from multiprocessing import forkserver
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

import pytest

from support import v2

PRELOADED = [
    "transformers",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.models.llama",
    "vllm_ppsd.worker.cpu",
]


class _Worker(ForkServerProcess):
    """A process with the environment of its parent, not that of the fork server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        # OpenMP has begun in the server and reads neither of these again.
        assert os.environ["OMP_NUM_THREADS"] == "1"
        core = re.search(r"proclist=\[(\d+)\]", os.environ["KMP_AFFINITY"])
        assert core is not None
        os.sched_setaffinity(0, {int(core[1])})
        if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
            v2.install()
        super().run()


class _Workers(ForkServerContext):
    Process = _Worker


def forked() -> BaseContext:
    """Return a context for vLLM's executor, in place of that which spawns.

    It is for workers of one core each, under Intel's OpenMP; under another one they are spawned.
    What a module reads of the environment when it is imported, it reads of the server's.
    """
    if "libiomp" not in os.environ.get("LD_PRELOAD", ""):
        return multiprocessing.get_context("spawn")
    for module in PRELOADED:  # the server leaves out without a word what it cannot import
        importlib.import_module(module)
    multiprocessing.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("KMP_AFFINITY", "none")
        forkserver.ensure_running()
    return _Workers()
