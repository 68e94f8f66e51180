"""``vllm serve`` with PPSD on a tiny model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import requests

from benchmarks import servers

NAME = "tiny"
OPTIONS = (
    *("--speculative-model", "ppsd", "--pipeline-parallel-size", "2", "--enforce-eager"),
    *("--served-model-name", NAME, "--max-model-len", "256"),
    *("--kv-cache-memory-bytes", str(2**26)),
)


class Tiny(servers.Server):
    """The server, with what tests ask of it."""

    def ask(self, tokens: int, **options: Any) -> Any:
        """Ask for a completion of a fixed prompt, greedily, once."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0, timeout=60)
        return client.completions.create(
            model=NAME,
            prompt=" ".join(f"t{i}" for i in range(5, 25)),
            max_tokens=tokens,
            temperature=0.0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
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

    def worker(self, stage: int) -> psutil.Process:
        """Return the process of a stage."""
        (found,) = [
            p for p in self.family() if any(f"Worker_PP{stage}" in word for word in p.cmdline())
        ]
        return found

    def terminate(self, seconds: float = 60) -> int:
        """Send SIGTERM; return the exit status once every process is gone."""
        _, *children = self.family()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        assert_gone(children, seconds)
        return status


@contextmanager
def serving(
    model: Path, log: Path, monkeypatch: Any, *options: str, **variables: str
) -> Iterator[Tiny]:
    """A server that is up; the plugin deals out the cores."""
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    with servers.serving(model, log, *OPTIONS, *options, variables=variables) as server:
        yield Tiny(server.port, server.process, server.log)


def assert_gone(family: list[psutil.Process], seconds: float) -> None:
    """Fail where one of the processes outlives ``seconds``."""
    _, alive = psutil.wait_procs(family, timeout=seconds)
    assert [(process.pid, process.status(), process.cmdline()) for process in alive] == []
