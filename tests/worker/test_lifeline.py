"""A worker dies with the engine's process, even while it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import psutil
import pytest

from vllm_ppsd.worker.lifeline import follow_engine

SPAWN = multiprocessing.get_context("spawn")


def work(started) -> None:
    follow_engine()
    started.put(os.getpid())
    signal.pause()


def engine(started) -> None:
    worker = SPAWN.Process(target=work, args=(started,))
    worker.start()
    worker.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_stopped_worker_goes_when_its_engine_is_killed():
    started = SPAWN.Queue()
    core = SPAWN.Process(target=engine, args=(started,), name="EngineCore")
    core.start()
    worker = psutil.Process(started.get(timeout=60))
    worker.suspend()
    core.kill()
    core.join()
    worker.wait(timeout=10)
