"""The scheduler with a made-up pipeline behind it: flushes, statistics, admission."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.scheduling import add, make_scheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import RequestStatus

from vllm_ppsd.engine.output import PPSDModelRunnerOutput
from vllm_ppsd.engine.scheduler import PPSDScheduler
from vllm_ppsd.plugin import register
from vllm_ppsd.protocol import Outcome, Verdict

TOKEN = 7


@pytest.fixture
def make(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    register()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    return partial(make_scheduler, tiny_llama)


def retire(scheduler: PPSDScheduler, tick: SchedulerOutput, stale: set[str], hit: bool) -> Any:
    """Hand in a tick's result: every lane that counts samples TOKEN."""
    names = list(tick.num_scheduled_tokens)
    return scheduler.update_from_output(
        tick,
        PPSDModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[[] if name in stale else [TOKEN] for name in names],
            verdict=Verdict(
                tick.tick.number,
                {
                    name: Outcome(name, (TOKEN,), 1, int(hit), 0 if hit else None)
                    for name in names
                    if name not in stale
                },
            ),
        ),
    )


def finished(outputs: Any) -> Any:
    return next(o for core in outputs.values() for o in core.outputs if o.finish_reason is not None)


def test_room_for_what_is_in_flight_is_known_to_the_key_value_cache(make):
    scheduler = make()
    config = scheduler.vllm_config
    assert config.speculative_config is None
    assert config.max_concurrent_batches == 3
    assert make(num_speculative_tokens=0, exit_layer=3).vllm_config.max_concurrent_batches == 2


def test_hits_are_counted_for_the_request_too(make):
    scheduler = make()
    add(scheduler, "a", tokens=5)
    flight = [scheduler.schedule(), scheduler.schedule(), scheduler.schedule()]
    outputs = None
    while flight:
        outputs = retire(scheduler, flight.pop(0), set(), hit=True)
        if scheduler.has_unfinished_requests():
            tick = scheduler.schedule()
            if tick.num_scheduled_tokens:
                flight.append(tick)
        if not scheduler.requests:
            break
    metrics = finished(outputs).spec_decode_metrics
    assert (metrics.num_draft_tokens, metrics.histogram) == (5, [0, 5])
    assert metrics.per_step_accepted == [1] * 5


@pytest.mark.parametrize("tokens", [2, 3])
def test_no_lane_is_sent_behind_the_last_token_unless_a_miss_rewinds(make, tokens):
    scheduler = make()
    add(scheduler, "a", tokens=tokens)
    flight = [scheduler.schedule() for _ in range(tokens)]
    assert all(tick.num_scheduled_tokens for tick in flight)
    assert not scheduler.schedule().num_scheduled_tokens
    retire(scheduler, flight[0], set(), hit=False)
    assert scheduler.schedule().scheduled_cached_reqs.new_token_ids == [[TOKEN]]


def test_a_miss_sends_the_true_token_and_drains_what_is_in_flight(make):
    scheduler = make()
    add(scheduler, "a")
    first, second, third = (scheduler.schedule() for _ in range(3))
    assert second.scheduled_cached_reqs.new_token_ids == [[]]
    assert third.scheduled_cached_reqs.num_computed_tokens == [3]
    retire(scheduler, first, set(), hit=False)
    again = scheduler.schedule()
    assert again.scheduled_cached_reqs.new_token_ids == [[TOKEN]]
    assert again.scheduled_cached_reqs.num_computed_tokens == [2]
    for tick in (second, third):
        retire(scheduler, tick, {"a"}, hit=False)
    assert scheduler.requests["a"].num_output_tokens == 1
    retire(scheduler, again, set(), hit=True)
    assert scheduler.requests["a"].num_output_tokens == 2


def test_a_fixed_depth_lets_everyone_in(make):
    scheduler = make(load_adaptive=False)
    names = [f"r{i}" for i in range(8)]
    add(scheduler, *names)
    for _ in range(2):
        assert set(scheduler.schedule().num_scheduled_tokens) == set(names)
    # Only a request that is alone is sent one tick ahead.
    assert not scheduler.schedule().num_scheduled_tokens


def test_under_load_sure_work_is_dealt_over_the_ticks(make):
    scheduler = make()
    names = [f"r{i}" for i in range(8)]
    add(scheduler, *names)
    prompts = scheduler.schedule()
    assert set(prompts.num_scheduled_tokens) == set(names)
    # As if every further lane took as long as a tick of one.
    for lanes in (1, 2, 4, 8) * 20:
        scheduler._admission._costs.observe(lanes, 0.01 * lanes)
    assert not scheduler.schedule().num_scheduled_tokens
    retire(scheduler, prompts, set(), hit=True)
    assert prompts.tick.no_draft_req_ids == set(names)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first.tick.no_draft_req_ids == set(first.num_scheduled_tokens)
    assert (len(first.num_scheduled_tokens), len(second.num_scheduled_tokens)) == (4, 4)
    assert not set(first.num_scheduled_tokens) & set(second.num_scheduled_tokens)


def test_beside_other_requests_nothing_is_drafted_in_a_tick_with_a_prompt(make):
    scheduler = make()
    add(scheduler, "first")
    prompt = scheduler.schedule()
    assert prompt.tick.no_draft_req_ids == set()
    retire(scheduler, prompt, set(), hit=True)
    add(scheduler, "second")
    both = scheduler.schedule()
    assert set(both.num_scheduled_tokens) == {"first", "second"}
    assert both.tick.no_draft_req_ids == {"first", "second"}


def test_new_requests_come_with_their_seeds(make):
    coupled, stock = make(), make(draft_sampling="greedy")
    for scheduler in (coupled, stock):
        add(scheduler, "a", "b")
    seeds = coupled.schedule().tick.seeds
    assert seeds.keys() == {"a", "b"}
    assert stock.schedule().tick.seeds == {}
    assert coupled.schedule().tick.seeds == {}


def test_a_name_that_is_used_again_has_a_seed_again(make):
    scheduler = make()
    add(scheduler, "a")
    first = scheduler.schedule().tick.seeds["a"]
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    add(scheduler, "a")
    seen = [scheduler.schedule().tick.seeds for _ in range(3)]
    assert [seeds["a"] != first for seeds in seen if seeds] == [True]
