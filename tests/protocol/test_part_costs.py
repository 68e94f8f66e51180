"""What the parts of a tick take, learned from what stage 0 measures and from round trips."""

from __future__ import annotations

import pytest

from vllm_ppsd.protocol.bursts import StageTimes
from vllm_ppsd.protocol.costs import PartCosts
from vllm_ppsd.protocol.tick import Lane, PartTimes, StagePass, Tick

TRUE = StageTimes((0.02, 0.01, 0.03), 0.003, 0.002, 0.1, 0.004)


def tick(rows: int, lanes: int = 1, alone: bool = True) -> Tick:
    """Return a tick of lanes alike."""
    each = rows // lanes
    names = [f"r{number}" for number in range(lanes)]
    depth = 1 if alone else None
    return Tick(0, tuple(Lane(name, 0, 9, each, each - 1, each) for name in names), depth=depth)


def learned() -> PartCosts:
    costs = PartCosts((2.0, 1.0, 3.0), 0.2)
    for _ in range(60):
        for rows in (1, 2, 4, 8):
            # Longer lanes are drafted for longer: no row's cost.
            costs.ticks.observe(rows, 3 * TRUE.stage(2, rows))
            costs.observe_parts(tick(rows), PartTimes(TRUE.stage(0, rows), 0.003, 0.002))
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
        costs.observe_parts(tick(1), PartTimes(0.02))
        costs.observe_parts(tick(1), PartTimes(0.02, 0.003, 0.002))
        costs.observe_round_trip(1, 0, sum(TRUE.stages) + 3 * TRUE.hop)
        costs.observe_parts(tick(1), PartTimes(5.0, 3.0, 3.0))
        costs.observe_round_trip(1, 0, 60.0)
    times = costs.times()
    assert times.stages[0] == pytest.approx(0.02, rel=0.05)
    assert times.continuation == pytest.approx(0.002)
    assert times.hop == pytest.approx(TRUE.hop, rel=0.2)


def test_a_head_that_never_went_on_is_taken_to_go_on_as_it_begins():
    costs = PartCosts((1.0, 1.0), 0.5)
    costs.observe_parts(tick(1), PartTimes(0.02, 0.004))
    assert costs.times().continuation == pytest.approx(0.004)


@pytest.mark.parametrize(("stages", "head"), [((), 0.1), ((1.0, 0.0), 0.1), ((1.0,), -1.0)])
def test_what_no_pipeline_has_is_refused(stages: tuple[float, ...], head: float):
    with pytest.raises(ValueError, match="stage 0"):
        PartCosts(stages, head)


def test_what_takes_longer_from_now_on_is_no_outlier():
    costs = PartCosts([1.0, 1.0], 0.1)
    for seconds in [0.01] * 60 + [0.04] * 200:
        costs.observe_parts(tick(1), PartTimes(seconds))
        costs.ticks.observe(1, seconds)
    assert costs.times().stages[0] == pytest.approx(0.04, rel=0.01)
    assert costs.ticks.seconds(1) == pytest.approx(0.04, rel=0.35)


def test_a_round_trip_says_nothing_before_the_stages_are_measured():
    costs = PartCosts([1.0, 1.0], 0.1)
    costs.observe_round_trip(1, 0, 0.05)
    assert not costs.is_measured
    for _ in range(10):
        costs.observe_parts(tick(1), PartTimes(0.01))
        costs.observe_round_trip(1, 0, 0.05)
    assert costs.is_measured
    assert costs.times().hop == pytest.approx(0.015, rel=0.1)
    assert costs.describe() == (
        "stages take 10.00, 10.00 ms (1.00 times that beside others), the head 1.00 ms and 1.00 ms "
        "a further draft, a hop 15.00 ms, a further row 0.020 of a pass"
    )


def test_where_stage_0_is_not_measured_rows_are_learned_from_ticks():
    costs = PartCosts([1.0, 1.0], 0.1)
    for _ in range(200):
        for rows in (1, 8):
            costs.ticks.observe(rows, 0.01 * (1 + 0.2 * (rows - 1)))
    assert not costs.is_measured
    assert costs.times().row == pytest.approx(0.2, rel=0.1)


def test_what_stages_at_work_at_once_cost_each_other_is_learned():
    costs = PartCosts([1.0, 1.0], 0.1)
    for _ in range(60):
        costs.observe_parts(tick(4), PartTimes(TRUE.stage(0, 4)))
        costs.observe_parts(tick(1), PartTimes(TRUE.stage(0, 1)))
        costs.observe_parts(tick(2, alone=False), PartTimes(1.2 * TRUE.stage(0, 2)))
    times = costs.times()
    assert times.beside == pytest.approx(1.2, rel=0.02)
    assert times.stages[0] == pytest.approx(TRUE.stages[0], rel=0.05)
    assert times.shared().stages[0] == pytest.approx(1.2 * TRUE.stages[0], rel=0.05)
    for _ in range(100):
        costs.observe_parts(tick(8, lanes=4, alone=False), PartTimes(1.2 * TRUE.stage(0, 8)))
    assert costs.times().row == pytest.approx(TRUE.row, rel=0.1)
    assert costs.times().stages[0] == pytest.approx(TRUE.stages[0], rel=0.1)


def test_other_stages_say_what_their_passes_take():
    """The hop is what is left of a round trip, whatever weights would have said of the stages."""
    costs = PartCosts((1.0, 0.2, 0.1), 0.1)
    costs.observe_pass(StagePass(1, 1, True, 9.0))  # before stage 0 was measured
    for _ in range(60):
        costs.observe_parts(tick(1), PartTimes(TRUE.stage(0, 1), 0.003, 0.002))
        costs.observe_parts(tick(4), PartTimes(TRUE.stage(0, 4), 0.003, 0.002))
        costs.observe_parts(tick(4, alone=False), PartTimes(1.2 * TRUE.stage(0, 4)))
        for stage in (1, 2):
            costs.observe_pass(StagePass(stage, 4, True, TRUE.stage(stage, 4)))
            costs.observe_pass(StagePass(stage, 2, False, 1.2 * TRUE.stage(stage, 2)))
        work = sum(TRUE.stage(i, 3) for i in range(3)) + TRUE.continuations(2)
        costs.observe_round_trip(3, 2, work + 3 * TRUE.hop)
    assert costs.times().stages == pytest.approx(TRUE.stages, rel=0.05)
    assert costs.times().hop == pytest.approx(TRUE.hop, rel=0.2)
