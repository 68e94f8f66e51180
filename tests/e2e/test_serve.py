"""``vllm serve --speculative-model ppsd`` answers a real client and goes away cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
import requests

pytestmark = pytest.mark.e2e

NAME = "tiny"


@pytest.fixture
def server(tiny_llama: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("vllm-ppsd")),
        *("vllm", "serve", str(tiny_llama), "--speculative-model", "ppsd"),
        *("--pipeline-parallel-size", "2", "--enforce-eager", "--port", str(port)),
        *("--host", "127.0.0.1", "--served-model-name", NAME),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(2**26)),
    ]
    environment = dict(os.environ)
    environment.pop("VLLM_CPU_OMP_THREADS_BIND", None)  # the plugin deals out the cores
    log = tmp_path / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, process, log)
        yield url, process
    finally:
        for child in (
            [*psutil.Process(process.pid).children(recursive=True)]
            if (process.poll() is None)
            else []
        ):
            child.kill()
        process.kill()
        process.wait()


def test_serve(server: tuple[str, subprocess.Popen]):
    url, process = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    prompt = " ".join(f"t{i}" for i in range(5, 25))
    asked = {"model": NAME, "prompt": prompt, "max_tokens": 40, "temperature": 0.0}
    whole = client.completions.create(**asked, extra_body={"ignore_eos": True})
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    chunks = list(client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 20
    metrics = requests.get(f"{url}/metrics", timeout=10).text
    drafts = _counter(metrics, "vllm:spec_decode_num_draft_tokens_total")
    hits = _counter(metrics, "vllm:spec_decode_num_accepted_tokens_total")
    assert 0 < hits < drafts == 80

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 4  # API server, engine core, one worker per stage
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert process.poll() == 0


def _wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(log.read_text()[-4000:])
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)
    raise AssertionError("the server does not come up:\n" + log.read_text()[-4000:])


def _counter(metrics: str, name: str) -> float:
    values = [line.split()[-1] for line in metrics.splitlines() if line.startswith(name)]
    assert values, f"{name} is not among the metrics"
    return float(values[0])
