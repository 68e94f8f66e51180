"""A stage that dies, hangs or raises, a server that is killed: errors, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path

import openai
import psutil
import pytest
import requests
from support import user
from support.breakable import BREAKABLE, MESSAGE
from support.engine import engine, params
from support.server import Tiny, assert_gone, serving

pytestmark = pytest.mark.e2e

PATIENCE = 8
"""Seconds that a stage may take, by ``VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS``."""


SOON = 10
"""Seconds in which an engine fails whose stage has raised, far below vLLM's 300."""


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.long), 1, pytest.param(2, marks=pytest.mark.long)]
)
def test_a_stage_raises(tiny_llama: Path, stage: int):
    prompt = {"prompt_token_ids": list(range(5, 25))}
    with engine(tiny_llama, stages=3, ppsd={}, worker_extension_cls=BREAKABLE) as llm:
        workers = [psutil.Process(child.pid) for child in active_children()]
        assert len(workers) == 3
        assert llm.generate([prompt], params(8), use_tqdm=False)[0].finished
        llm.collective_rpc("break_stage", args=(stage,))
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(RuntimeError, match=f"stage {stage}: KeyError: '{MESSAGE}'"):
                llm.generate([prompt], params(8), use_tqdm=False)
            assert time.monotonic() - began < SOON
    assert_gone(workers, SOON)


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_of_a_server_raises(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
):
    options = ("--worker-extension-cls", BREAKABLE)
    variables = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with serving(tiny_llama, tmp_path / "server.log", monkeypatch, *options, **variables) as server:
        _, *children = server.family()
        call = {"method": "break_stage", "args": [stage]}
        requests.post(f"{server.url}/collective_rpc", json=call, timeout=SOON).raise_for_status()
        began = time.monotonic()
        text, error = stream(server)
        assert (text, time.monotonic() - began < SOON) == ("", True)
        assert error is not None
        server.process.wait(60)
        assert_gone(children, SOON)
        assert f"Worker failed with error 'stage {stage}: KeyError: " in server.log.read_text()


@pytest.mark.long
def test_a_server_is_killed(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(tiny_llama, tmp_path / "server.log", monkeypatch) as server:
        _, *children = server.family()
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(stream, server)
            time.sleep(0.5)
            server.process.kill()
            assert answer.result()[1] is not None
        assert_gone(children, 2 * SOON)


@pytest.mark.long
@pytest.mark.parametrize("multiprocessing", ["0", "1"])
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_users_process_ends_while_a_stage_hangs(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, multiprocessing: str, sign: signal.Signals
):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", multiprocessing)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, user.__file__, str(tiny_llama)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "ready\n" for line in process.stdout)
        time.sleep(2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(sign)
        assert_gone(children, 4 * SOON)


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("streams", [0, 4])
def test_a_stage_dies_or_hangs(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    sign: signal.Signals,
    streams: int,
):
    variables = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(PATIENCE)}
    with serving(tiny_llama, tmp_path / "server.log", monkeypatch, **variables) as server:
        whole = server.ask(200).choices[0].text
        _, *children = server.family()
        with ThreadPoolExecutor(max(1, streams)) as clients:
            texts = [clients.submit(stream, server) for _ in range(streams)]
            time.sleep(0.7)
            server.worker(stage).send_signal(sign)
            if sign == signal.SIGSTOP and not streams:
                # An idle server finds out when it is asked.
                texts = [clients.submit(stream, server)]
            check_answers(texts, whole)
        # Asked first: psutil would take the exit status away.
        server.process.wait(PATIENCE + 60)
        assert_gone(children, PATIENCE + 30)
        log = server.log.read_text()
        assert "EngineDeadError" in log or "died unexpectedly" in log


def stream(server: Tiny) -> tuple[str, Exception | None]:
    """Read a long answer; return what came of it, and the error that ended it."""
    text = ""
    try:
        for chunk in server.ask(200, stream=True):
            text += chunk.choices[0].text
    except (openai.APIError, OSError) as error:
        return text, error
    return text, None


def check_answers(texts: list[Future[tuple[str, Exception | None]]], whole: str) -> None:
    """No client is left waiting, and none got a wrong token."""
    for future in texts:
        text, error = future.result(timeout=PATIENCE + 60)
        assert whole.startswith(text)
        assert error is not None or text == whole


@pytest.mark.long
def test_too_little_memory_is_an_error_at_start(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("--kv-cache-memory-bytes", str(2**45))
    log = tmp_path / "server.log"
    with (
        pytest.raises(RuntimeError, match="does not come up"),
        serving(tiny_llama, log, monkeypatch, *options),
    ):
        pass
    text = log.read_text()
    assert "memory" in text.lower()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tiny_llama) in str(p.info)]
