"""A stage that dies or hangs amid drafts: an error for every client, and no process left."""

from __future__ import annotations

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from support.server import Tiny, assert_gone, serving

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PATIENCE = 8
"""Seconds that a stage may take, by ``VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS``."""


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
