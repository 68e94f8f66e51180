"""Tables of what the cost model says beside what was measured."""

import pytest
from planning.test_cost_model import profile
from support.simulator.simulate import Simulation

from benchmarks import cost_model, layouts
from vllm_ppsd.planning.model import plain_pipeline


def test_the_cost_model_s_error_is_of_the_measured_time():
    rows = [
        {
            "requests": 1,
            "acceptance": None,
            "drafted": 0.0,
            "times_ms": [48.0, 50.0, 82.0],
            "model_ms": 45.0,
            "simulated_ms": 55.0,
        },
        {
            "requests": 8,
            "acceptance": 0.5,
            "drafted": 0.75,
            "times_ms": [100.0],
            "model_ms": 100.0,
            "simulated_ms": None,
        },
    ]
    text = cost_model.render(rows)
    assert "| 1 | plain | 0.00 | 50.0 (48.0 to 82.0) | 45.0 | -10% | 55.0 | +10% |" in text
    assert "| 8 | 0.50 | 0.75 | 100.0 (100.0 to 100.0) | 100.0 | +0% |  |  |" in text


def test_the_plan_s_choice_is_held_against_the_best_measured():
    rows = [
        {"exit_layer": e, "acceptance": 0.7, "speedups": s, "planned": p, "identical": 2}
        for e, s, p in ((16, [1.2, 1.3], 1.5), (18, [1.3, 1.4], 1.4))
    ]
    text = layouts.render(rows)
    assert "| 16 | 0.70 | 1.25 (1.20 to 1.30) | 1.50 | 2 of 2 |" in text
    assert "The plan picks exit 16, 0.93 of the best measured." in text


def test_what_was_drafted_and_what_was_not_weigh_by_their_shares():
    made = profile()
    one = cost_model._expected(made, (12, 12), 1, 0.7, 1.0)
    assert one["simulated_ms"] == pytest.approx(one["model_ms"], rel=0.1)
    all_, half, none = (
        cost_model._expected(made, (12, 12), 8, 0.7, share)["model_ms"] for share in (1, 0.5, 0)
    )
    assert all_ < half < none
    assert none == cost_model._expected(made, (12, 12), 8, None, 0)["model_ms"]


def test_a_request_s_time_per_token_is_from_its_first_to_its_last():
    partition = (17, 13)
    played = Simulation(profile(), partition, 0.0, 0, requests=2, tokens=50).run()
    expected = plain_pipeline(profile(), partition, 2).ms_per_token
    assert cost_model._ms_per_token(played) == pytest.approx(expected, rel=0.01)
