"""The late device of the tests: it is late, and right for a host that waits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
import torch
from support.late.device import DEVICE, Event, Stream
from support.late.tensors import FACTORIES, LATE, LateTensor

from vllm_ppsd.to_host import DeviceWaiter, HostCopy

RIGHT = [1.0, 2.0, 3.0]


@pytest.fixture(autouse=True)
def late() -> Iterator[None]:
    with torch.inference_mode(), FACTORIES:
        DEVICE.stand_still()
        yield
        DEVICE.synchronize()


def on_device(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).to(LATE, non_blocking=True)


def test_values_are_garbage_until_the_host_waits():
    copied = on_device(RIGHT).to("cpu", non_blocking=True)
    (event := Event()).record()
    assert copied.isnan().all()
    event.synchronize()
    assert copied.tolist() == RIGHT


@pytest.mark.parametrize("look", [lambda x: x.tolist(), lambda x: x.cpu().tolist()])
def test_what_needs_values_waits(look):
    made = on_device(RIGHT) * 2
    assert look(made) == [2, 4, 6]
    assert made.max().item() == 6


def test_a_thread_that_waits_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    before, done, waiter = DEVICE.waits.total(), [], DeviceWaiter(LATE, lambda: None)
    for values in (RIGHT, [4.0]):
        copy = HostCopy(on_device(values))
        waiter.run(lambda copy=copy: done.append(copy.values()))
    waiter.run(lambda: done.append("all"))
    assert DEVICE.waits.total() == before and not done
    DEVICE.synchronize()
    while "all" not in done:
        time.sleep(0.001)
    assert done == [RIGHT, [4.0], "all"]


def test_what_is_staged_may_be_overwritten_at_once():
    source = torch.tensor(RIGHT)
    made = source.to(LATE, non_blocking=True)
    source.zero_()
    assert made.tolist() == RIGHT


def test_memory_of_the_host_is_read_late():
    buffer = torch.tensor(RIGHT)
    made = LateTensor(buffer).clone()
    buffer.zero_()
    assert made.tolist() == [0, 0, 0]


def test_a_stream_is_in_order_and_another_is_not():
    memory, seen = on_device([0.0]), []
    side = Stream()
    DEVICE.default.weight, side.weight = 1e-9, 1.0
    for waits_for_it in (False, True):
        memory.zero_()
        DEVICE.synchronize()
        memory.fill_(1.0)
        if waits_for_it:
            side.wait_stream(DEVICE.default)
        with DEVICE.using(side):
            seen.append((memory + 1).item())
        DEVICE.synchronize()
    assert seen == [1, 2]
    assert memory.item() == 1


def test_a_shape_that_depends_on_values_waits():
    before = DEVICE.waits.total()
    made = on_device(RIGHT)
    kept = made[made > 1]
    assert DEVICE.waits.total() == before + 1
    assert kept.tolist() == [2, 3]


def test_what_fails_on_the_device_fails_on_the_host():
    other = type(DEVICE)()

    def fail() -> None:
        raise ValueError("no such row")

    other.default.launch(fail)
    with pytest.raises(RuntimeError) as failure:
        other.synchronize()
    assert "no such row" in str(failure.value.__cause__)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_the_results_are_those_of_the_host(seed: int):
    rng = random.Random(seed)
    DEVICE.seed(str(seed))
    here = [torch.arange(6.0) + i for i in range(3)]
    there = [one.to(LATE) for one in here]
    streams = [DEVICE.default, Stream(), Stream()]
    for _ in range(40):
        DEVICE.draw()
        kind, stream = rng.randrange(4), rng.choice(streams)
        a, b = rng.sample(range(3), 2)
        for other in streams:
            stream.wait_stream(other)
        with DEVICE.using(stream):
            _change(here, kind, a, b)
            _change(there, kind, a, b)
    for stream in streams:
        DEVICE.default.wait_stream(stream)
    assert [one.tolist() for one in there] == [one.tolist() for one in here]


def _change(values: list[torch.Tensor], kind: int, a: int, b: int) -> None:
    if kind == 0:
        values[a][a : a + 3] = values[b][a : a + 3] * 0.5
    elif kind == 1:
        values[a] = torch.stack([values[a], values[b]]).flip(0).amax(0)
    elif kind == 2:
        values[a].add_(values[b].roll(1)).mul_(0.5)
    else:
        values[a] = values[b].view(2, 3).t().reshape(-1).clone()
