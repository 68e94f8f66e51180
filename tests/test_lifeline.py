"""No process of an engine outlives the one that started it, even while it is stopped or waits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from vllm_ppsd.lifeline import follow_engine, follow_server

SPAWN = multiprocessing.get_context("spawn")
GRACE = 0.5


def work(started: Any) -> None:
    # As one that waits for another stage: SIGTERM is not looked at.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    follow_engine(GRACE)
    started.put(os.getpid())
    time.sleep(600)


def engine(started: Any) -> None:
    """An engine, in whatever process; it starts its worker from a thread that ends."""
    follow_server(GRACE)
    worker = SPAWN.Process(target=work, args=(started,))
    if multiprocessing.current_process().name == "EngineCore":
        worker.start()
    else:
        starter = threading.Thread(target=worker.start)
        starter.start()
        starter.join()
    time.sleep(600)


def server(started: Any) -> None:
    core = SPAWN.Process(target=engine, args=(started,), name="EngineCore")
    core.start()
    started.put(core.pid)
    time.sleep(600)


def start(target: Any, name: str, count: int) -> list[psutil.Process]:
    """Start a process; return it, and ``count`` below it."""
    started = SPAWN.Queue()
    process = SPAWN.Process(target=target, args=(started,), name=name)
    process.start()
    return [psutil.Process(pid) for pid in [process.pid, *(started.get() for _ in range(count))]]


def assert_ends(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.wait(timeout=20)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_stopped_worker_goes_when_its_engine_is_killed():
    core, worker = start(engine, "EngineCore", 1)
    worker.suspend()
    core.kill()
    assert_ends([core, worker])


def test_engine_and_worker_go_when_the_server_is_killed():
    family = start(server, "MainProcess", 2)
    family[0].kill()
    assert_ends(family)


def test_a_worker_outlives_the_thread_that_started_it_and_goes_with_the_users_process():
    user, worker = start(engine, "MainProcess", 1)
    time.sleep(3 * GRACE)
    assert worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    user.terminate()
    assert_ends([user, worker])


def test_an_engine_in_the_users_process_follows_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("it follows"))
    follow_server(GRACE)
