"""No process of an engine outlives the one that started it, whatever it is doing."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

CHECK_SECONDS = 0.5
"""How often a process looks whether its parent is there."""

_PR_SET_PDEATHSIG = 1


def follow_parent(grace: float) -> None:
    """End this process when the one that started it has ended, in whatever way.

    SIGTERM comes first, so that this process can release what it holds.

    Args:
        grace: seconds between SIGTERM and SIGKILL.
    """
    if multiprocessing.parent_process() is None:
        return
    threading.Thread(
        target=_follow, args=(os.getppid(), grace), daemon=True, name="PPSDLifeline"
    ).start()


def follow_server(grace: float) -> None:
    """As ``follow_parent``, in the process of an engine core; elsewhere nothing happens.

    An engine may live in the user's own process, which follows nobody.
    """
    if _is_engine_core(multiprocessing.current_process().name):
        follow_parent(grace)


def follow_engine(grace: float) -> None:
    """As ``follow_parent``, for a worker; the kernel kills it where it safely can.

    The kernel needs no thread of this process, which may be stopped. But it counts from
    the thread that started the worker: in an engine core's process that is the main one,
    in the user's own process it may end before the engine.
    """
    follow_parent(grace)
    engine = multiprocessing.parent_process()
    if sys.platform != "linux" or engine is None or not _is_engine_core(engine.name):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _is_engine_core(name: str) -> bool:
    return name.startswith("EngineCore")


def _follow(parent: int, grace: float) -> None:
    process = multiprocessing.parent_process()
    assert process is not None
    # `is_alive` knows of a parent that ended before this thread began, but not while a
    # process that was forked after this one holds the parent's end of the pipe.
    while os.getppid() == parent and process.is_alive():
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)
