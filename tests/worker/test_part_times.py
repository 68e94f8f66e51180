"""What is measured of a tick on a stage."""

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


def test_a_pass_is_of_all_that_the_last_stage_does_but_not_of_its_waiting():
    watch = PartWatch(CPU)
    with watch.layers():
        time.sleep(0.01)
    time.sleep(0.01)
    watch.until_now()
    time.sleep(0.1)
    watch.go_on()
    time.sleep(0.01)
    watch.until_now()
    seen = watch.passed(ALONE, 2)
    assert seen is not None
    assert (seen.stage, seen.rows, seen.alone) == (2, 3, False)
    assert 0.028 < seen.seconds < 0.09
    watch.begin()
    watch.go_on()
    watch.until_now()
    assert watch.passed(ALONE, 2) is None
