"""A worker does not outlive its engine, whatever it is doing."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def follow_engine() -> None:
    """Ask the kernel to kill this process when the engine core's ends.

    vLLM closes a pipe for that, but a stage that waits for a stage that hangs does
    not look at it. Left alone where the engine lives in the user's own process: the
    kernel counts from the thread that started the worker, which may end before it.
    """
    engine = multiprocessing.parent_process()
    if sys.platform != "linux" or engine is None or engine.name == "MainProcess":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine.pid:
        os.kill(os.getpid(), signal.SIGKILL)
