"""The formulas against the simulator, and both against what can be said without them."""

from __future__ import annotations

import pytest
from support.simulator.simulate import Simulation

from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.exit_head.config import ExitHeadConfig, Target
from vllm_ppsd.exit_head.create import head_config
from vllm_ppsd.planning import model
from vllm_ppsd.planning.times import Parts, Profile
from vllm_ppsd.trace.spans import What


def profile(
    head: float = 2.0,
    hand_over: float = 0.3,
    verdict: float = 0.2,
    control: float = 1.0,
    prepare: float = 0.0,
    contention: float = 1.0,
    **by_lanes: float,
) -> Profile:
    parts = Parts(layer=1.0, head=head, lm_head=3.0, sampler=0.5)
    slope = by_lanes.get("slope", 0.0)
    many = Parts(**{name: value * (1 + 63 * slope) for name, value in parts})
    return Profile(
        model="made up",
        hardware="none",
        num_layers=30,
        by_lanes={1: parts, 64: many},
        hand_over=hand_over,
        verdict=verdict,
        control=control,
        prepare=prepare,
        contention=contention,
    )


FREE = Profile(
    model="equal stages",
    hardware="none",
    num_layers=24,
    by_lanes={1: Parts(layer=1.0, head=0.0, lm_head=0.0, sampler=0.0)},
    hand_over=0.0,
    verdict=0.0,
    control=0.0,
)


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_equal_stages_that_cost_nothing_else_reach_the_ideal(stages: int, alpha: float):
    partition = [24 // stages] * stages
    plain = model.plain_pipeline(FREE, partition)
    ours = model.ppsd(FREE, partition, alpha, stages - 1)
    assert plain.ms_per_token == pytest.approx(24)
    assert plain.idle == pytest.approx([1 - 1 / stages] * stages)
    assert plain.ms_per_token / ours.ms_per_token == pytest.approx(ideal_speedup(stages, alpha))


@pytest.mark.parametrize("partition", [(17, 13), (20, 10), (12, 18), (10, 10, 10), (8, 8, 8, 6)])
@pytest.mark.parametrize(
    "times",
    [
        {},
        {"head": 8.0},
        {"hand_over": 5.0, "verdict": 5.0, "control": 6.0},
        {"contention": 1.1},
        {"prepare": 3.0, "control": 5.0},
    ],
)
@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_one_request_takes_what_the_simulator_takes(
    partition: tuple[int, ...], times: dict[str, float], alpha: float
):
    made = profile(**times)
    drafts = len(partition) - 1
    played = Simulation(made, partition, alpha, drafts, tokens=600).run()
    assert played.acceptance is not None
    expected = model.ppsd(made, partition, played.acceptance, drafts)
    assert expected.ms_per_token == pytest.approx(played.ms_per_token(), rel=0.05)
    idle = [share.idle for share in played.shares()]
    # How many stale ticks a stage in the middle begins hangs on the order of two events.
    assert (expected.idle[0], expected.idle[-1]) == pytest.approx((idle[0], idle[-1]), abs=0.1)


@pytest.mark.parametrize("requests", [1, 2, 4, 8])
@pytest.mark.parametrize("partition", [(17, 13), (10, 10, 10)])
@pytest.mark.parametrize("contention", [1.0, 1.2])
def test_plain_decoding_takes_what_the_simulator_takes(
    requests: int, partition: tuple[int, ...], contention: float
):
    made = profile(slope=0.05, contention=contention)
    expected = model.plain_pipeline(made, partition, requests)
    played = Simulation(made, partition, 0.0, 0, requests, tokens=200).run()
    per_token = played.ms_per_token() * requests
    assert expected.ms_per_token == pytest.approx(per_token, rel=0.06)


def test_requests_that_arrived_in_one_group_stay_in_it():
    made = profile(slope=0.5)
    dealt, alone, uneven = (
        model.plain_pipeline(made, (17, 13), 8, groups).ms_per_token
        for groups in ((), (8,), (7, 1))
    )
    assert dealt < uneven < alone
    with pytest.raises(ValueError, match="are not 8 requests"):
        model.plain_pipeline(made, (17, 13), 8, (7, 2))


def test_drafts_in_flight_beyond_the_stages_fill_a_slow_link():
    slow = profile().over_link(20.0)
    taken = [model.ppsd(slow, (17, 13), 0.9, drafts).ms_per_token for drafts in (1, 2, 3, 4)]
    assert taken == sorted(taken, reverse=True)
    played = [Simulation(slow, (17, 13), 0.9, k, tokens=800).run() for k in (1, 4)]
    assert played[1].ms_per_token() < 0.7 * played[0].ms_per_token()


def test_a_slow_link_ruins_tensor_parallelism_first():
    slow = profile().over_link(2.0)
    base = model.plain_pipeline(slow, (17, 13)).ms_per_token
    assert model.tensor_parallel(slow, 2).ms_per_token > 2 * base
    assert model.ppsd(slow, (17, 13), 0.8, 2).ms_per_token < base


def test_drafting_without_the_overlap_gains_less():
    drafted = min(
        model.draft_then_verify(profile(), (17, 13), 0.8, k).ms_per_token for k in range(1, 6)
    )
    assert model.ppsd(profile(), (17, 13), 0.8, 1).ms_per_token < drafted


def lens_head(exit_layer: int, num_layers: int) -> ExitHeadConfig:
    """A head's config, of a model that is made up."""
    target = Target(
        architecture="LlamaForCausalLM",
        num_hidden_layers=num_layers,
        hidden_size=64,
        vocab_size=512,
        fingerprint="sha256:" + 64 * "0",
    )
    return head_config(target, exit_layer=exit_layer, head_type="lens")


def reading(times: Profile, layer: int) -> Profile:
    """The same times, with a head that reads the stage which ends with ``layer``."""
    config = lens_head(1, times.num_layers).model_copy(update={"deeper_layers": [layer]})
    return times.model_copy(update={"head": config})


def test_waiting_for_deeper_states_costs_nothing_between_equal_stages():
    times = profile()
    both = (model.ppsd(t, (17, 13), 0.8, 1) for t in (times, reading(times, 30)))
    assert next(both) == next(both)


def test_over_a_slow_link_the_wait_is_counted():
    """Two ticks take a whole way round: stage 0, the last stage's layers, the link twice."""
    times = profile(hand_over=40.0, verdict=40.0)
    waiting = model.ppsd(reading(times, 30), (17, 13), 1.0, 8)
    assert model.ppsd(times, (17, 13), 1.0, 8).ms_per_token == pytest.approx(19.0)
    assert waiting.ms_per_token == pytest.approx((17 + 2 + 40 + 13 + 40) / 2)


@pytest.mark.parametrize("partition", [(17, 13), (12, 18), (10, 10, 10), (8, 8, 8, 6)])
@pytest.mark.parametrize("hand_over", [0.3, 5.0, 40.0])
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_the_simulator_waits_for_deeper_states_too(
    partition: tuple[int, ...], hand_over: float, alpha: float
):
    """A head that reads the last stage; the protocol's own book says what it waits for."""
    made = reading(profile(hand_over=hand_over, verdict=hand_over, control=2 * hand_over), 30)
    drafts = len(partition) - 1
    played = Simulation(made, partition, alpha, drafts, tokens=600).run()
    assert played.acceptance is not None
    expected = model.ppsd(made, partition, played.acceptance, drafts)
    assert expected.ms_per_token == pytest.approx(played.ms_per_token(), rel=0.06)


def test_the_simulated_wait_is_seen_over_a_slow_link():
    times = reading(profile(hand_over=40.0, verdict=40.0), 30)
    played = Simulation(times, (17, 13), 1.0, 8, tokens=300).run()
    assert sum(span.duration for span in played.spans if span.what == What.STATES) > 0
    assert played.ms_per_token() == pytest.approx((17 + 2 + 40 + 13 + 40) / 2, rel=0.03)


def test_plain_decoding_sends_no_states_back():
    times = reading(profile(), 30)
    played = Simulation(times, (17, 13), 0.0, 0, tokens=50).run()
    assert played.ms_per_token() == pytest.approx(
        model.plain_pipeline(times, (17, 13)).ms_per_token, rel=0.06
    )
