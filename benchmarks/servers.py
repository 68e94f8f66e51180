"""``vllm serve`` as a process of its own, for benchmarks and tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.slow_link import ADDRESSES, DEVICE, SlowLink
from vllm_ppsd.config.cpu_binding import CORES, PARTITION
from vllm_ppsd.exit_head.lookup import find

COMMON = (
    *("--served-model-name", "model", "--max-model-len", "2048"),
    *("--max-num-batched-tokens", "512", "--no-enable-prefix-caching"),
)
"""Options of every server whose speed is measured."""

START_SECONDS = 600
"""A compiled engine may take minutes to come up on few cores."""


@dataclass
class Server:
    """A server that is up.

    Attributes:
        port: on 127.0.0.1.
        process: the API server.
        log: file with everything that it and its children print.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """The server's address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def family(self) -> list[psutil.Process]:
        """Return the API server and every process below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextmanager
def serving(
    model: Path | str, log: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server that is up; what is left of it in the end is killed.

    Args:
        model: folder of the model.
        log: file for what it prints.
        options: of ``vllm serve``.
        variables: set in its environment, over this process's.

    Raises:
        RuntimeError: it does not come up; with the end of its log.
    """
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(model, port, options),
            stdout=file,
            stderr=file,
            env=dict(os.environ) | dict(variables or {}),
        )
    server = Server(port, process, log)
    family: list[psutil.Process] = []
    try:
        _wait_until_up(server)
        family = server.family()
        yield server
    finally:
        if process.poll() is None and not family:
            family = server.family()
        for child in family:
            if child.is_running():
                child.kill()
        process.wait()


@contextmanager
def serving_two_nodes(
    model: Path | str,
    log: Path,
    link: SlowLink,
    *options: str,
    cores: Sequence[str],
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server whose two stages are at the two ends of a link.

    Must be called inside end 0 of the link.

    Args:
        model: folder of the model.
        log: file for what the first node prints; the second one's ends in ``.other``.
        link: with a node at each end.
        options: of ``vllm serve``, for both nodes.
        cores: of each node.
        variables: set in both environments.
    """
    common = [
        *("--pipeline-parallel-size", "2", "--nnodes", "2"),
        *("--master-addr", ADDRESSES[0], "--master-port", str(free_port())),
        *options,
    ]

    def at(end: int) -> dict[str, str]:
        place = {"VLLM_HOST_IP": ADDRESSES[end], CORES: cores[end]}
        return dict(variables or {}) | place | {"GLOO_SOCKET_IFNAME": DEVICE}

    other = [*command(model, free_port(), common), "--headless", "--node-rank", "1"]
    with link.inside(1), log.with_suffix(".other").open("wb") as file:
        node = subprocess.Popen(other, stdout=file, stderr=file, env=dict(os.environ) | at(1))
    try:
        with serving(model, log, *common, "--node-rank", "0", variables=at(0)) as server:
            yield server
    finally:
        node.terminate()
        node.wait()


def split_of(head: str, model: str) -> dict[str, str]:
    """Return the environment in which plain decoding has PPSD's split over two stages.

    Args:
        head: exit head, as of ``--speculative-model``.
        model: the target.
    """
    return {PARTITION: ",".join(map(str, find(head, model).config.two_stages))}


def command(model: Path | str, port: int, options: Sequence[str]) -> list[str]:
    """Return the command line of a server."""
    program = str(Path(sys.executable).with_name("vllm-ppsd"))
    place = ("--host", "127.0.0.1", "--port", str(port))
    return [program, "vllm", "serve", str(model), *place, *options]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError("the server does not come up:\n" + server.log.read_text()[-4000:])
