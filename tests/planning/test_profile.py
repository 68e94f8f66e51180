"""A profile derived from traces of the simulator is the one that was simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning.test_cost_model import lens_head, profile
from support.simulator.simulate import Simulation

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.planning.model import ppsd
from vllm_ppsd.planning.profile import derive
from vllm_ppsd.planning.times import read_profile


def test_the_times_that_were_simulated_are_found_again():
    wanted = profile(contention=1.2, slope=0.05, prepare=0.7)
    partition = (17, 13)
    plain = {n: Simulation(wanted, partition, 0.0, 0, n, tokens=60).run() for n in (1, 4)}
    drafting = {n: Simulation(wanted, partition, 0.5, 1, n, tokens=60).run() for n in (1, 4)}
    found = derive("m", "h", partition, [plain[1]], [drafting[1]])
    assert found.by_lanes[1].layer == pytest.approx(wanted.by_lanes[1].layer)
    assert found.by_lanes[1].lm_head == pytest.approx(wanted.by_lanes[1].lm_head)
    assert found.by_lanes[1].sampler == pytest.approx(wanted.by_lanes[1].sampler)
    assert found.by_lanes[1].head == pytest.approx(wanted.by_lanes[1].head)
    assert found.hand_over == pytest.approx(wanted.hand_over)
    assert found.prepare == pytest.approx(wanted.prepare)
    assert found.control == pytest.approx(wanted.control)
    assert found.contention == pytest.approx(1.2)


def test_the_lanes_that_steps_really_had_are_what_counts():
    wanted = profile(slope=0.05)
    partition = (17, 13)
    plain = {n: Simulation(wanted, partition, 0.0, 0, n, tokens=60).run() for n in (1, 4)}
    drafting = {n: Simulation(wanted, partition, 0.5, 1, n, tokens=60).run() for n in (1, 4)}
    found = derive("m", "h", partition, [*plain.values()], [*drafting.values()])
    assert set(found.by_lanes) == {1, 2}, "plain decoding runs two of four requests in a step"
    assert found.control_beside is None, "stage 0 never waited for the scheduler alone"
    for lanes in (1, 2):
        assert found.at(lanes).layer == pytest.approx(wanted.at(lanes).layer)
        assert found.at(lanes).head == pytest.approx(wanted.at(lanes).head)


def test_the_scheduler_s_time_beside_other_requests_is_found():
    wanted = profile(control=9.0)
    plain = [Simulation(wanted, (10, 20), 0.0, 0, n, tokens=60).run() for n in (1, 2, 4)]
    drafting = [Simulation(wanted, (10, 20), 0.5, 1, 1, tokens=60).run()]
    found = derive("m", "h", (10, 20), plain, drafting)
    assert found.control_beside == pytest.approx(9.0)


def test_cost_model_and_simulator_agree_with_the_run_that_they_know_the_times_of():
    made, partition = profile(), (17, 13)
    plain = Simulation(made, partition, 0.0, 0, tokens=40).run()
    drafting = Simulation(made, partition, 0.7, 1, tokens=800).run()
    assert drafting.acceptance is not None
    derived = derive("m", "h", partition, [plain], [drafting], lens_head(17, 30))
    expected = ppsd(derived, partition, drafting.acceptance, drafts=1).ms_per_token
    assert round(100 * abs(expected / drafting.ms_per_token() - 1)) <= 3
    derived = derive("m", "h", partition, [plain], [drafting])
    played = Simulation(derived, partition, drafting.acceptance, 1, tokens=2000).run()
    assert round(100 * abs(played.ms_per_token() / drafting.ms_per_token() - 1)) <= 3


def test_a_trace_too_short_is_refused():
    partition = (17, 13)
    plain = [Simulation(profile(), partition, 0.0, 0, 1, tokens=3).run()]
    drafting = [Simulation(profile(), partition, 0.5, 1, 1, tokens=3).run()]
    with pytest.raises(PPSDConfigError, match=r"fewer than 4 steps of one request.*: sampler"):
        derive("m", "h", partition, plain, drafting)


def test_lanes_between_are_on_a_straight_line():
    made = profile(slope=0.1)
    assert made.at(1).layer == 1
    assert made.at(11).layer == pytest.approx(2)
    assert made.at(128).layer == pytest.approx(1 + 12.7)


def test_what_is_no_profile_is_refused(tmp_path: Path):
    path = tmp_path / "profile.json"
    with pytest.raises(PPSDConfigError, match="cannot read"):
        read_profile(path)
    path.write_text('{"model": "m"}')
    with pytest.raises(PPSDConfigError, match=r"profile\.json: hardware: Field required"):
        read_profile(path)
    path.write_text(profile().model_dump_json())
    assert read_profile(path) == profile()
