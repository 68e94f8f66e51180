"""Tables of what the cost model says beside what was measured."""

import pytest
from planning.test_cost_model import profile
from support.simulator.simulate import Simulation

from benchmarks import cost_model
from vllm_ppsd.planning.model import plain_pipeline


def test_the_cost_model_s_error_is_of_the_measured_time():
    rows = [
        {
            "requests": 1,
            "acceptance": None,
            "drafted": 0.0,
            "times_ms": [48.0, 50.0, 82.0],
            "model_ms": 45.0,
        },
        {
            "requests": 8,
            "acceptance": 0.5,
            "drafted": 0.75,
            "times_ms": [100.0],
            "model_ms": 100.0,
        },
    ]
    text = cost_model.render(rows)
    assert "| 1 | plain | 0.00 | 50.0 (48.0 to 82.0) | 45.0 | -10% |" in text
    assert "| 8 | 0.50 | 0.75 | 100.0 (100.0 to 100.0) | 100.0 | +0% |" in text


def test_what_was_drafted_and_what_was_not_weigh_by_their_shares():
    made = profile()
    one = cost_model._expected_ms(made, (12, 12), 1, 0.7, 1.0)
    played = Simulation(made, (12, 12), 0.7, cost_model.DRAFTS, tokens=2000).run()
    assert played.ms_per_token() == pytest.approx(one, rel=0.1)
    all_, half, none = (
        cost_model._expected_ms(made, (12, 12), 8, 0.7, share) for share in (1, 0.5, 0)
    )
    assert all_ < half < none
    assert none == cost_model._expected_ms(made, (12, 12), 8, None, 0)


def test_a_request_s_time_per_token_is_from_its_first_to_its_last():
    partition = (17, 13)
    played = Simulation(profile(), partition, 0.0, 0, requests=2, tokens=50).run()
    expected = plain_pipeline(profile(), partition, 2).ms_per_token
    assert cost_model._ms_per_token(played) == pytest.approx(expected, rel=0.01)
