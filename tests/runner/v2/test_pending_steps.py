"""A stage has no more steps on its device than there are buffers."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.runner.v2.pending import PendingSteps


class Event:
    """Of a step that the device finishes when the host waits for it."""

    waited: list[int]
    made = 0

    def __init__(self, blocking: bool) -> None:
        self.number = Event.made
        Event.made += 1

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        Event.waited.append(self.number)


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.made, Event.waited = 0, []
    monkeypatch.setattr(torch.cuda, "Event", Event)


def run(steps: int, device: str) -> list[list[int]]:
    """Return which steps were waited for when each one began."""
    pending = PendingSteps(torch.device(device), most=3)
    waited = []
    for _ in range(steps):
        pending.begin()
        waited.append(list(Event.waited))
        pending.end()
    return waited


def test_a_step_waits_for_the_one_whose_buffers_it_takes():
    assert run(6, "cuda") == [[], [], [], [0], [0, 1], [0, 1, 2]]


def test_on_a_cpu_nothing_is_pending():
    assert run(6, "cpu") == [[]] * 6
    assert Event.made == 0
