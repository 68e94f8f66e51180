"""``vllm serve --speculative-model ppsd`` answers real clients and goes away cleanly."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import AF_INET6

import pytest
from support.runners import BOTH
from support.server import Tiny, serving
from vllm.utils.network_utils import test_loopback_bind as can_bind

pytestmark = [pytest.mark.e2e, *BOTH]


TEXTS: dict[str, str] = {}
"""By runner."""


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    with serving(model, tmp_path / "server.log", monkeypatch) as server:
        yield server


def test_serve(server: Tiny, model: Path, runner: str):
    whole = server.ask(40)
    TEXTS[runner] = whole.choices[0].text
    assert len(set(TEXTS.values())) == 1, "every runner writes the same text"
    assert whole.usage.completion_tokens == 40
    chunks = list(server.ask(40, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 20
    drafts = server.metric("spec_decode_num_draft_tokens_total")
    hits = server.metric("spec_decode_num_accepted_tokens_total")
    assert 0 < hits < drafts == 80

    clients_vanish(server)
    head_is_replaced(model)
    assert server.ask(40).choices[0].text == whole.choices[0].text

    assert len(server.family()) >= 4  # API server, engine core, one worker per stage
    with ThreadPoolExecutor(4) as clients:
        streams = [clients.submit(stream_to_the_end, server) for _ in range(4)]
        time.sleep(0.5)
        # Drafts are in flight, and most of them miss.
        assert server.terminate() == 0
        texts = [stream.result() for stream in streams]
    log = server.log.read_text()
    assert "leaked shared_memory" not in log
    expected = whole.choices[0].text
    assert any(texts), "nothing was delivered before the server ended"
    assert all(text[: len(expected)] == expected[: len(text)] for text in texts)


@pytest.mark.long
@pytest.mark.skipif(not can_bind("::1", AF_INET6), reason="no IPv6 loopback")
def test_stages_of_an_ipv6_host(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variables = {"VLLM_LOOPBACK_IP": "::1"}
    with serving(model, tmp_path / "server.log", monkeypatch, **variables) as server:
        assert server.ask(20).usage.completion_tokens == 20
        assert server.metric("spec_decode_num_draft_tokens_total") > 0


def stream_to_the_end(server: Tiny) -> str:
    """Read a long answer for as long as it comes."""
    text = ""
    try:
        for chunk in server.ask(230, stream=True):
            text += chunk.choices[0].text
    except Exception:
        pass
    return text


def clients_vanish(server: Tiny) -> None:
    """Some read a few chunks and close the connection; nothing of them stays behind."""
    for chunks in (1, 2, 3, 5, 8):
        stream = server.ask(200, stream=True)
        for _, _chunk in zip(range(chunks), stream, strict=False):
            pass
        stream.close()
    deadline = time.monotonic() + 20
    while server.metric("num_requests_running") + server.metric("num_requests_waiting"):
        assert time.monotonic() < deadline, "requests of clients that left are still there"
        time.sleep(0.1)


def head_is_replaced(model: Path) -> None:
    """Somebody writes over the head's files, in place."""
    for file in (model / "ppsd").iterdir():
        file.write_bytes(b"something else")
