"""The worth of an acceptance rate, in both modes."""

from __future__ import annotations

import pytest

from vllm_ppsd.costs import (
    ModelShape,
    best_one_device_speedup,
    draft_threshold,
    one_device_speedup,
    tokens_per_round,
)
from vllm_ppsd.planning.model import plain_pipeline, ppsd
from vllm_ppsd.planning.shape import assumed_head
from vllm_ppsd.planning.times import assumed_profile


def test_a_round_delivers_one_token_more_than_its_hits():
    assert tokens_per_round(3, 0.0) == 1
    assert tokens_per_round(3, 1.0) == 4
    assert tokens_per_round(2, 0.5) == pytest.approx(1 + 0.5 + 0.25)


def test_drafts_of_half_the_depth_pay_only_if_most_are_hits():
    assert one_device_speedup(3, 0.5, 1.0) == pytest.approx(4 / 2.5)
    assert one_device_speedup(3, 0.5, 0.5) < 1
    assert one_device_speedup(3, 0.25, 0.8) > one_device_speedup(3, 0.5, 0.8)


def test_at_best_a_draft_that_does_not_pay_is_left_out():
    assert best_one_device_speedup(5, 0.5, 0.4) == 1
    assert best_one_device_speedup(5, 0.5, 0.9) == pytest.approx(one_device_speedup(3, 0.5, 0.9))


def test_the_dearer_a_draft_the_surer_it_must_be():
    costs = [0.1, 0.25, 0.35, 0.57, 0.9]
    thresholds = [draft_threshold(cost) for cost in costs]
    assert thresholds == sorted(thresholds)
    assert 0 < thresholds[0] < 0.5 < thresholds[2] < thresholds[-1] == 1


def test_a_head_that_goes_on_reads_no_layers_before_the_exit():
    shape = ModelShape(30, 576, 1536, 9, 3, 64, 49152)
    head = assumed_head(shape, 18)
    going_on = head.model_copy(update={"steps": 4})
    plain = shape.num_layers + shape.lm_head_cost
    assert shape.draft_cost(head) == pytest.approx((18 + shape.head_cost(head)) / plain)
    assert shape.draft_cost(going_on) * plain == pytest.approx(shape.head_cost(head), rel=0.1)
    assert shape.draft_cost(going_on) * plain > shape.head_cost(head)


@pytest.mark.parametrize(("partition", "deeper"), [([17, 13], []), ([10, 10, 10], [20, 30])])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_by_weights_alone_a_tick_costs_what_the_planner_says(
    partition: list[int], deeper: list[int], alpha: float
):
    shape = ModelShape(30, 576, 1536, 9, 3, 64, 49152)
    head = assumed_head(shape, partition[0]).model_copy(update={"deeper_layers": deeper})
    costs, profile = shape.tick_costs(partition, head), assumed_profile("", shape, head)
    drafts = len(partition) - 1
    assert costs.plain == pytest.approx(plain_pipeline(profile, partition).ms_per_token)
    planned = ppsd(profile, partition, alpha, drafts).ms_per_token
    assert costs.per_token(alpha, drafts) == pytest.approx(planned)
