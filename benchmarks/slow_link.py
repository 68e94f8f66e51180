"""Two network namespaces joined by a link with a delay, for two nodes on one machine.

Each namespace has a TUN device; a process of its own carries packets from one to the
other and holds each back for the delay. That needs root, but no support for netem in the
kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import queue
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADDRESSES = ("10.213.0.1", "10.213.0.2")
DEVICE = "ppsd0"
MTU = 65_000

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


class SlowLink:
    """The link. Inside ``with`` it carries packets.

    Args:
        delay: seconds that a packet takes, each way; ``set_delay`` changes it.

    Raises:
        PermissionError: this process may not make namespaces.
    """

    def __init__(self, delay: float = 0.0) -> None:
        if os.geteuid():
            raise PermissionError("a link between network namespaces needs root")
        self.namespaces = tuple(f"ppsd-{os.getpid()}-{end}" for end in "ab")
        self._delay: Any = multiprocessing.Value("d", delay)

    def __enter__(self) -> SlowLink:
        for name, address in zip(self.namespaces, ADDRESSES, strict=True):
            _ip("netns", "add", name)
            inside = ("netns", "exec", name, "ip")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "tuntap", "add", "dev", DEVICE, "mode", "tun")
            _ip(*inside, "addr", "add", f"{address}/30", "dev", DEVICE)
            _ip(*inside, "link", "set", DEVICE, "mtu", str(MTU), "up")
        self._carrier = multiprocessing.get_context("fork").Process(
            target=_carry, args=(self.namespaces, self._delay), daemon=True
        )
        self._carrier.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._carrier.kill()
        self._carrier.join()
        for name in self.namespaces:
            _ip("netns", "delete", name)

    def set_delay(self, seconds: float) -> None:
        """Change what a packet takes from now on."""
        self._delay.value = seconds

    @contextlib.contextmanager
    def inside(self, end: int) -> Iterator[None]:
        """Let this thread, and processes that it starts, be at one end of the link."""
        with Path("/proc/thread-self/ns/net").open() as home:
            _enter(self.namespaces[end])
            try:
                yield
            finally:
                _setns(home.fileno())


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _enter(namespace: str) -> None:
    with Path("/run/netns", namespace).open() as file:
        _setns(file.fileno())


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _carry(namespaces: tuple[str, ...], delay: Any) -> None:
    """Carry packets both ways until killed."""
    ends = [_open_device(namespace) for namespace in namespaces]
    for here, there in (ends, ends[::-1]):
        packets: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(here, packets, delay), daemon=True).start()
        threading.Thread(target=_write, args=(there, packets), daemon=True).start()
    threading.Event().wait()


def _open_device(namespace: str) -> int:
    _enter(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def _read(device: int, packets: queue.SimpleQueue[tuple[float, bytes]], delay: Any) -> None:
    while True:
        packet = os.read(device, MTU + 100)
        packets.put((time.monotonic() + delay.value, packet))


def _write(device: int, packets: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due, packet = packets.get()
        time.sleep(max(0.0, due - time.monotonic()))
        os.write(device, packet)
