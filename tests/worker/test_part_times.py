"""What is measured of a tick on stage 0."""

from __future__ import annotations

import time

import torch

from vllm_ppsd.protocol import Lane, Tick
from vllm_ppsd.worker.part_times import PartWatch

CPU = torch.device("cpu")
ALONE = Tick(0, (Lane("a", 0, 5, length=3, drafted=2, samples=3),))


def test_parts_are_timed_by_step():
    watch = PartWatch(CPU)
    with watch.layers():
        time.sleep(0.02)
    with watch.drafting(2):
        time.sleep(0.02)
    seconds = watch.result(ALONE)
    assert seconds is not None
    assert seconds.layers > 0.015
    assert 0.008 < seconds.first_step == seconds.continuation < seconds.layers
    watch.begin()
    assert watch.result(ALONE) is None


def test_continuations_behind_a_known_token_are_timed_alone():
    watch = PartWatch(CPU)
    with watch.going_on(4):
        time.sleep(0.02)
    with watch.layers():
        pass
    with watch.drafting(0):
        time.sleep(0.01)
    seconds = watch.result(ALONE)
    assert seconds is not None
    assert seconds.first_step == 0.0
    assert 0.004 < seconds.continuation < 0.02


def test_of_several_requests_the_layers_alone_are_timed():
    several = Tick(0, (ALONE.lanes[0], Lane("b", 0, 7, samples=1)))
    watch = PartWatch(CPU)
    with watch.layers():
        time.sleep(0.01)
    with watch.drafting(2):
        pass
    seconds = watch.result(several)
    assert seconds is not None
    assert seconds.layers > 0.005
    assert seconds.first_step == seconds.continuation == 0.0


def test_prompts_and_other_devices_are_not_timed():
    prompt = Tick(0, (ALONE.lanes[0], Lane("a", 0, 0, length=9)))
    for device, tick in ((CPU, prompt), (torch.device("cuda"), ALONE)):
        watch = PartWatch(device)
        with watch.layers():
            pass
        assert watch.result(tick) is None
