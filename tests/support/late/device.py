"""A device that runs behind its host: streams, events, and the thread that works through them.

What the host launches is queued on a stream. The thread takes from the head of one stream or
another, as the order that was drawn last says, and stays as far behind as that says, too. It works
on when the host waits for it, or launches nothing for a while: a host that waits for another
process would wait for ever, otherwise.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

LAGS = (0, 20, 100, 400, 10**9, 10**9)
"""How many launches the device may be behind; the last of them: until the host waits."""

PATIENCE = (0.0005, 0.003, 0.02, 0.06)
"""Seconds without a launch after which the device goes on."""

TRANSFERS = (0.0, 0.0, 0.005, 0.03)
"""Seconds that a transfer to another stage takes, in which its buffers are read."""

TICKS = (1, 1, 2, 6)
"""Ticks that an order lasts: to fall some ticks behind takes some ticks."""

_NOBODY = ("support.late", "torch", "contextlib")

POLL = 0.0003
"""Seconds between two looks whether something has arrived."""


@dataclass(eq=False)
class _Work:
    """A launch.

    Attributes:
        run: does the work.
        ready: whether it can be done now.
        done: whether it was.
    """

    run: Callable[[], None]
    ready: Callable[[], bool]
    done: bool = False


def _always() -> bool:
    return True


def _nothing() -> None:
    pass


def _caller() -> str:
    """Return the function that made the host wait."""
    frame = sys._getframe(1)
    while (name := frame.f_globals["__name__"]).startswith(_NOBODY) and frame.f_back is not None:
        frame = frame.f_back
    return f"{name}.{frame.f_code.co_qualname}"


class Device:
    """The streams, the thread, and how it orders its work.

    Attributes:
        orders: how many were drawn.
        transfer: seconds that a transfer to another stage takes.
        waits: by function of vLLM or PPSD, how often the worker waited for the device there.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._streams: list[Stream] = []
        self._pending = self._waiting = 0
        self._launched = time.monotonic()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._here = threading.local()
        self._random = random.Random(0)
        self._lag, self._patience, self.transfer = LAGS[-1], PATIENCE[-1], TRANSFERS[0]
        self.orders = self._ticks = 0
        self.waits: Counter[str] = Counter()
        self.default = Stream(device=self)

    def seed(self, seed: str) -> None:
        """Begin a sequence of orders."""
        self._random = random.Random(seed)

    def tick(self) -> None:
        """A tick begins: draw an order for it and perhaps for some more."""
        if self._ticks == 0:
            self._ticks = self._random.choice(TICKS)
            self.draw()
        self._ticks -= 1

    def draw(self) -> None:
        """Draw an order: how far behind the host, and which streams are slow."""
        with self._changed:
            self.orders += 1
            self._lag = self._random.choice(LAGS)
            self._patience = self._random.choice(PATIENCE)
            self.transfer = self._random.choice(TRANSFERS)
            for stream in self._streams:
                stream.weight = self._random.random() ** 6 + 1e-6
            self._changed.notify_all()

    def stand_still(self) -> None:
        """Do nothing but what somebody waits for, until an order is drawn."""
        with self._changed:
            self._lag, self._patience = LAGS[-1], math.inf

    def add(self, stream: Stream) -> None:
        with self._changed:
            self._streams.append(stream)

    @property
    def current(self) -> Stream:
        """The stream that this thread launches on."""
        return getattr(self._here, "stream", self.default)

    def use(self, stream: Stream) -> None:
        """Let this thread launch on a stream."""
        self._here.stream = stream

    @contextmanager
    def using(self, stream: Stream) -> Any:
        """Let this thread launch on a stream for a while."""
        before = self.current
        self.use(stream)
        try:
            yield stream
        finally:
            self.use(before)

    def launch(self, stream: Stream, work: _Work) -> None:
        with self._changed:
            self._raise_failure()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="late device", daemon=True)
                self._thread.start()
            stream.queue.append(work)
            self._pending += 1
            self._launched = time.monotonic()
            if self._pending == 1 or self._pending > self._lag:
                self._changed.notify_all()

    def wait(self, work: _Work) -> None:
        """Wait until something was done.

        A thread that waits besides the worker's holds nobody up, and the device takes its time.
        """
        if threading.current_thread() is not threading.main_thread():
            with self._changed:
                while not work.done and self._failure is None:
                    self._changed.wait(POLL)
                self._raise_failure()
            return
        self.waits[_caller()] += 1
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            while not work.done and self._failure is None:
                self._changed.wait()
            self._waiting -= 1
            self._raise_failure()

    def synchronize(self) -> None:
        """Wait for all streams."""
        for stream in list(self._streams):
            stream.synchronize()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("a launch has failed on the late device") from self._failure

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while (stream := self._next()) is None:
                    self._changed.wait(POLL if self._pending else None)
                work = stream.queue[0]
            try:
                work.run()
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                stream.queue.popleft()
                self._pending -= 1
                work.done = True
                if self._waiting:
                    self._changed.notify_all()

    def _next(self) -> Stream | None:
        """Return the stream to go on with, if any."""
        idle = time.monotonic() - self._launched > self._patience
        if not (idle or self._waiting or self._pending > self._lag):
            return None
        able = [stream for stream in self._streams if stream.queue and stream.queue[0].ready()]
        if not able:
            return None
        return self._random.choices(able, [stream.weight for stream in able])[0]


@dataclass(eq=False)
class Stream:
    """Takes the place of ``torch.cuda.Stream``: what is launched on it is done in order."""

    ordinal: Any = None
    priority: int = 0
    device: Any = None
    queue: deque[_Work] = field(default_factory=deque)
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._device: Device = self.device if isinstance(self.device, Device) else DEVICE
        self._device.add(self)

    def launch(self, run: Callable[[], None], ready: Callable[[], bool] = _always) -> _Work:
        """Do something behind all that was launched, when it is ready."""
        work = _Work(run, ready)
        self._device.launch(self, work)
        return work

    def record_event(self, event: Event | None = None) -> Event:
        event = event if event is not None else Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if (work := event.work) is not None and not work.done:
            self.launch(_nothing, lambda: work.done)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def query(self) -> bool:
        return not self.queue

    def synchronize(self) -> None:
        if self.queue:
            self._device.wait(self.launch(_nothing))


class Event:
    """Takes the place of ``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.work: _Work | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream if stream is not None else DEVICE.current
        self.work = stream.launch(_nothing)

    def wait(self, stream: Stream | None = None) -> None:
        (stream if stream is not None else DEVICE.current).wait_event(self)

    def query(self) -> bool:
        return self.work is None or self.work.done

    def synchronize(self) -> None:
        if self.work is not None and not self.work.done:
            DEVICE.wait(self.work)


DEVICE = Device()


def use_stream(stream: Stream | None) -> AbstractContextManager[Any]:
    """Take the place of ``torch.cuda.stream``."""
    return DEVICE.using(stream if stream is not None else DEVICE.current)
