"""Readers of queues that sleep at once, in every process of an emulated pipeline."""

from __future__ import annotations

from importlib.metadata import entry_points
from types import SimpleNamespace

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

from benchmarks import patient_queues


def plugins():
    return [e for e in entry_points(group="vllm.general_plugins") if e.name == patient_queues.NAME]


def test_vllm_finds_the_plugin_while_it_is_wanted():
    assert not plugins()
    with patient_queues.everywhere():
        (plugin,) = plugins()
        assert plugin.load() is patient_queues.register
    assert not plugins()


def test_readers_do_not_spin(monkeypatch):
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)
    patient_queues.register()
    once = SpinCondition.wait
    patient_queues.register()
    assert SpinCondition.wait is once, "vLLM loads plugins more than once"
    asked: list[int] = []
    reader = SpinCondition.__new__(SpinCondition)
    reader.is_reader, reader.busy_loop_s = True, 1
    reader.read_cancel_socket, reader.local_notify_socket = "cancel", "notify"
    reader.poller = SimpleNamespace(poll=lambda timeout: asked.append(timeout) or [])
    reader.record_read()
    for timeout in (None, 1, 5000):
        reader.wait(timeout)
    assert asked == [patient_queues.NAP_MS, 1, patient_queues.NAP_MS]
