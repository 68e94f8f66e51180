"""On a CPU nothing is late; on a device, what waits for it does not hold the worker up."""

from __future__ import annotations

import threading

import pytest
import torch

from vllm_ppsd.to_host import DeviceWaiter, HostCopy

CPU = torch.device("cpu")
ELSEWHERE = torch.device("cuda")


def nobody_fails() -> None:
    raise AssertionError("nothing has failed")


def test_on_a_cpu_a_copy_is_the_tensor_itself():
    tensor = torch.arange(3)
    copy = HostCopy(tensor)
    assert copy.tensor() is tensor
    assert copy.values() == [0, 1, 2]


def test_on_a_cpu_actions_run_at_once():
    done = []
    DeviceWaiter(CPU, nobody_fails).run(lambda: done.append(threading.current_thread()))
    assert done == [threading.main_thread()]


def test_elsewhere_they_run_in_order_and_the_worker_goes_on():
    waiter = DeviceWaiter(ELSEWHERE, nobody_fails)
    arrived, all_done = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        arrived.wait(10)
        done.append(1)

    waiter.run(first)
    waiter.run(lambda: done.append(2))
    waiter.run(all_done.set)
    assert done == []
    arrived.set()
    assert all_done.wait(10)
    assert done == [1, 2]


def test_a_failure_is_told_at_once_and_nothing_more_is_run():
    told, go_on = threading.Event(), threading.Event()
    waiter = DeviceWaiter(ELSEWHERE, told.set)
    done: list[int] = []

    def fail() -> None:
        go_on.wait(10)
        raise ValueError("the other end is gone")

    waiter.run(fail)
    waiter.run(lambda: done.append(1))
    go_on.set()
    assert told.wait(10)
    with pytest.raises(ValueError, match="the other end is gone"):
        waiter.run(lambda: done.append(2))
    assert done == []
