"""``vllm serve`` with PPSD on a tiny model, as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import requests

NAME = "tiny"
START_SECONDS = 240


@dataclass
class Server:
    """A server that is up.

    Attributes:
        url: without a path.
        process: the API server.
        log: file with everything that it and its children printed.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        """A client that tries once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def ask(self, tokens: int, **options: Any) -> Any:
        """Ask for a completion of a fixed prompt, greedily."""
        prompt = " ".join(f"t{i}" for i in range(5, 25))
        return self.client.completions.create(
            model=NAME,
            prompt=prompt,
            max_tokens=tokens,
            temperature=0.0,
            extra_body={"ignore_eos": True},
            **options,
        )

    def metric(self, name: str) -> float:
        """Return the value of one of vLLM's metrics."""
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        values = [
            line.split()[-1] for line in text.splitlines() if line.startswith(f"vllm:{name}{{")
        ]
        assert values, f"{name} is not among the metrics"
        return float(values[0])

    def family(self) -> list[psutil.Process]:
        """Return the API server and every process below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def worker(self, stage: int) -> psutil.Process:
        """Return the process of a stage."""
        (found,) = [
            p for p in self.family() if any(f"Worker_PP{stage}" in word for word in p.cmdline())
        ]
        return found

    def terminate(self, seconds: float = 60) -> int:
        """Send SIGTERM; return the exit status once every process is gone.

        Raises:
            AssertionError: some process is still there.
            subprocess.TimeoutExpired: the API server is.
        """
        _, *children = self.family()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        assert_gone(children, seconds)
        return status


def command(model: Path, port: int, *options: str) -> list[str]:
    """Return the command line that serves ``model``."""
    return [
        str(Path(sys.executable).with_name("vllm-ppsd")),
        *("vllm", "serve", str(model), "--speculative-model", "ppsd"),
        *("--pipeline-parallel-size", "2", "--enforce-eager", "--port", str(port)),
        *("--host", "127.0.0.1", "--served-model-name", NAME),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(2**26)),
        *options,
    ]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with ``variables``; the plugin deals out the cores."""
    environment = dict(os.environ) | variables
    environment.pop("VLLM_CPU_OMP_THREADS_BIND", None)
    return environment


@contextmanager
def serving(model: Path, log: Path, **variables: str) -> Iterator[Server]:
    """A server that is up; what is left of it is killed in the end."""
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(model, port), stdout=file, stderr=file, env=clean_environment(variables)
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    family: list[psutil.Process] = []
    try:
        _wait_until_up(server)
        family = server.family()
        yield server
    finally:
        for child in family or server.family():
            if child.is_running():
                child.kill()
        process.wait()


def assert_gone(family: list[psutil.Process], seconds: float) -> None:
    """Fail where one of the processes outlives ``seconds``."""
    _, alive = psutil.wait_procs(family, timeout=seconds)
    assert [(process.pid, process.status(), process.cmdline()) for process in alive] == []


def _wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(server.log.read_text()[-4000:])
        try:
            if requests.get(f"{server.url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError("the server does not come up:\n" + server.log.read_text()[-4000:])
