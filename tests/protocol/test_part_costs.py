"""What the parts of a tick take, learned from what stage 0 measures and from round trips."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol.bursts import StageTimes
from vllm_ppsd.protocol.costs import PartCosts
from vllm_ppsd.protocol.tick import PartTimes

TRUE = StageTimes((0.02, 0.01, 0.03), 0.003, 0.002, 0.1, 0.004)


def learned() -> PartCosts:
    costs = PartCosts((2.0, 1.0, 3.0), 0.2)
    for _ in range(60):
        for rows in (1, 2, 4, 8):
            # Longer lanes are drafted for longer: no row's cost.
            costs.ticks.observe(rows, 3 * TRUE.stage(2, rows))
            costs.observe_parts(rows, PartTimes(TRUE.stage(0, rows), 0.003, 0.002))
    for _ in range(10):
        work = sum(TRUE.stage(i, 3) for i in range(3)) + TRUE.continuations(2)
        costs.observe_round_trip(3, 2, work + 3 * TRUE.hop)
    return costs


def test_before_anything_is_measured_times_are_passes_of_stage_0():
    times = PartCosts((2.0, 1.0), 0.2).times()
    assert times.stages == (1.0, 0.5)
    assert (times.first_step, times.continuation, times.hop) == (0.2, 0.2, 0.0)


def test_parts_are_learned():
    times = learned().times()
    assert times.stages == pytest.approx(TRUE.stages, rel=0.05)
    assert times.row == pytest.approx(TRUE.row, rel=0.1)
    assert times.first_step == pytest.approx(0.003)
    assert times.continuation == pytest.approx(0.002)
    assert times.hop == pytest.approx(TRUE.hop, rel=0.2)


def test_a_step_that_was_not_run_says_nothing_and_a_pause_is_no_pass():
    costs = learned()
    for _ in range(20):
        costs.observe_parts(1, PartTimes(0.02))
        costs.observe_parts(1, PartTimes(0.02, 0.003, 0.002))
        costs.observe_round_trip(1, 0, sum(TRUE.stages) + 3 * TRUE.hop)
        costs.observe_parts(1, PartTimes(5.0, 3.0, 3.0))
        costs.observe_round_trip(1, 0, 60.0)
    times = costs.times()
    assert times.stages[0] == pytest.approx(0.02, rel=0.05)
    assert times.continuation == pytest.approx(0.002)
    assert times.hop == pytest.approx(TRUE.hop, rel=0.2)


def test_a_head_that_never_went_on_is_taken_to_go_on_as_it_begins():
    costs = PartCosts((1.0, 1.0), 0.5)
    costs.observe_parts(1, PartTimes(0.02, 0.004))
    assert costs.times().continuation == pytest.approx(0.004)


@pytest.mark.parametrize(("stages", "head"), [((), 0.1), ((1.0, 0.0), 0.1), ((1.0,), -1.0)])
def test_what_no_pipeline_has_is_refused(stages: tuple[float, ...], head: float):
    with pytest.raises(ValueError, match="stage 0"):
        PartCosts(stages, head)


def test_what_takes_longer_from_now_on_is_no_outlier():
    costs = PartCosts([1.0, 1.0], 0.1)
    for seconds in [0.01] * 60 + [0.04] * 200:
        costs.observe_parts(1, PartTimes(seconds))
        costs.ticks.observe(1, seconds)
    assert costs.times().stages[0] == pytest.approx(0.04, rel=0.35)
    assert costs.ticks.seconds(1) == pytest.approx(0.04, rel=0.35)


def test_a_round_trip_says_nothing_before_the_stages_are_measured():
    costs = PartCosts([1.0, 1.0], 0.1)
    costs.observe_round_trip(1, 0, 0.05)
    assert not costs.is_measured
    for _ in range(10):
        costs.observe_parts(1, PartTimes(0.01))
        costs.observe_round_trip(1, 0, 0.05)
    assert costs.is_measured
    assert costs.times().hop == pytest.approx(0.015, rel=0.1)
    assert costs.describe() == (
        "stage 0 takes 10.00 ms, the head 1.00 ms and 1.00 ms a further draft, a hop 15.00 ms, "
        "a further row 0.020 of a pass"
    )


def test_where_stage_0_is_not_measured_rows_are_learned_from_ticks():
    costs = PartCosts([1.0, 1.0], 0.1)
    for _ in range(200):
        for rows in (1, 8):
            costs.ticks.observe(rows, 0.01 * (1 + 0.2 * (rows - 1)))
    assert not costs.is_measured
    assert costs.times().row == pytest.approx(0.2, rel=0.1)
