"""The scheduler's lanes of several tokens: lengths, ends, outcomes, statistics."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.scheduling import BLOCK, add, make_scheduler
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_ppsd.engine.output import PPSDModelRunnerOutput
from vllm_ppsd.plugin import register
from vllm_ppsd.protocol import BurstPlan, Outcome, Shape, Verdict

TOKEN = 7


@pytest.fixture
def make(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    register()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    record = tmp_path / "record.jsonl"
    record.write_text(json.dumps({"prompt_token_ids": [5, 6], "output_token_ids": [7]}) + "\n")
    drafter = {"record": str(record), "acceptance": 0.5}
    return partial(make_scheduler, tiny_llama, synthetic_drafter=drafter, exact=False)


def hand_in(scheduler: Any, tick: Any, **outcomes: Outcome) -> Any:
    """Hand in a tick's result; other requests' lanes are stale."""
    names = list(tick.num_scheduled_tokens)
    return scheduler.update_from_output(
        tick,
        PPSDModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=[
                list(outcomes[name].tokens) if name in outcomes else [] for name in names
            ],
            verdict=Verdict(tick.tick.number, outcomes),
        ),
    )


def hit(tokens: int, name: str = "a") -> Outcome:
    """All of a lane's tokens were right, and the next lane's first."""
    return Outcome(name, (TOKEN,) * tokens, tokens, tokens, 0)


def miss(tokens: int, name: str = "a") -> Outcome:
    return Outcome(name, (TOKEN,) * tokens, tokens, tokens - 1)


def lengths(tick: Any) -> list[tuple[int, int, int, int]]:
    return [(one.position, one.length, one.drafted, one.samples) for one in tick.tick.lanes]


def test_following_lanes_carry_as_many_drafts_as_the_tick_before_says(make):
    scheduler = make(burst={"following": 3})
    add(scheduler, "a")
    prompt, second, third = (scheduler.schedule() for _ in range(3))
    assert [lengths(tick) for tick in (prompt, second, third)] == [
        [(0, 2, 0, 1)],
        [(2, 3, 3, 3)],
        [(5, 3, 3, 3)],
    ]
    assert prompt.tick.shapes == {"a": Shape(length=3)}
    assert second.scheduled_spec_decode_tokens == {"a": [-1, -1]}
    assert not scheduler.schedule().num_scheduled_tokens, "two lanes are unverified"
    hand_in(scheduler, prompt, a=hit(1))
    hand_in(scheduler, second, a=hit(3))
    assert scheduler.requests["a"].num_output_tokens == 4
    assert lengths(scheduler.schedule()) == [(8, 3, 3, 3)]


def test_a_cut_burst_keeps_what_was_right_and_re_enters_with_drafts(make):
    scheduler = make(burst={"reentry": 4, "following": 3})
    add(scheduler, "a")
    prompt, second, third = (scheduler.schedule() for _ in range(3))
    assert prompt.tick.reentry_req_ids == second.tick.reentry_req_ids == {"a"}
    hand_in(scheduler, prompt, a=hit(1))
    hand_in(scheduler, second, a=miss(2))
    root = scheduler.schedule()
    assert lengths(root) == [(4, 5, 4, 5)]
    assert root.tick.lanes[0].after == second.tick.number
    assert root.scheduled_cached_reqs.new_token_ids == [[TOKEN]]
    hand_in(scheduler, third)
    assert scheduler.requests["a"].num_output_tokens == 3
    hand_in(scheduler, root, a=miss(5))
    assert scheduler.requests["a"].num_output_tokens == 8
    assert scheduler.requests["a"].num_computed_tokens == 9


def test_stage_0_holds_what_is_sent_ahead_for_a_request_alone_by_its_plan(make, monkeypatch):
    scheduler = make(num_speculative_tokens=3, load_adaptive=False)
    monkeypatch.setattr(scheduler._admission, "plan", lambda _: BurstPlan(0, 1, depth=1))
    add(scheduler, "a")
    sent = [scheduler.schedule() for _ in range(4)]
    assert [len(tick.tick.lanes) for tick in sent] == [1, 1, 1, 0]
    assert [tick.tick.depth for tick in sent[:3]] == [1, 1, 1]
    add(scheduler, "b")
    assert scheduler.schedule().tick.depth is None


def test_where_no_lane_follows_every_lane_is_a_root(make):
    scheduler = make(burst={"reentry": 3, "following": 0})
    add(scheduler, "a")
    prompt = scheduler.schedule()
    assert prompt.tick.no_draft_req_ids == {"a"}
    assert not scheduler.schedule().num_scheduled_tokens
    hand_in(scheduler, prompt, a=Outcome("a", (TOKEN,), 0, 0))
    root = scheduler.schedule()
    assert lengths(root) == [(2, 4, 3, 4)]
    hand_in(scheduler, root, a=Outcome("a", (TOKEN,) * 4, 3, 3))
    assert lengths(scheduler.schedule()) == [(6, 4, 3, 4)]


@pytest.mark.parametrize("by_the_model", [False, True])
@pytest.mark.parametrize("tokens", range(1, 9))
def test_bursts_end_where_the_request_does(make, tokens: int, by_the_model: bool):
    scheduler = make(burst={"reentry": 7, "following": 8}, num_speculative_tokens=4)
    add(scheduler, "a", tokens=200 if by_the_model else tokens)
    if by_the_model:
        scheduler.max_model_len = 2 + tokens
    sent = []
    while (tick := scheduler.schedule()).num_scheduled_tokens:
        sent.append(tick)
    lanes = [lane for tick in sent for lane in tick.tick.lanes]
    assert lanes[-1].end == 2 + tokens - 1, "the last token is sampled and not embedded"
    for tick in sent:
        hand_in(scheduler, tick, a=hit(tick.tick.lanes[0].samples))
    assert not scheduler.requests


def test_a_stop_token_inside_a_burst_ends_the_request(make):
    scheduler = make(burst={"following": 4})
    add(scheduler, "a", ignore_eos=False)
    prompt, second = scheduler.schedule(), scheduler.schedule()
    hand_in(scheduler, prompt, a=hit(1))
    outputs = hand_in(scheduler, second, a=Outcome("a", (TOKEN, 2, TOKEN, TOKEN), 4, 4, 0))
    (output,) = outputs[0].outputs
    assert (output.new_token_ids, str(output.finish_reason)) == ([TOKEN, 2], "stop")


@pytest.mark.parametrize(
    ("outcome", "cached"),
    [
        (Outcome("a", (TOKEN, TOKEN, 2), 3, 3, 0), BLOCK),
        (Outcome("a", (TOKEN, 2), 2, 1), 0),
        (Outcome("a", (TOKEN, 2), 2, 2, 0, redrafted=1), 0),
    ],
    ids=["all right", "missed", "replaced"],
)
def test_a_stop_in_a_cut_burst_leaves_no_draft_in_the_prefix_cache(
    make, outcome: Outcome, cached: int
):
    scheduler = make(burst={"following": 3})
    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK, sha256)
    sampling = SamplingParams(max_tokens=20, stop_token_ids=[2])

    def request(name: str, *tokens: int) -> Request:
        return Request(name, list(tokens), sampling, None, block_hasher=hasher)

    begin = range(10, 7 + BLOCK)
    stopping = request("a", *begin)
    scheduler.add_request(stopping)
    prompt, second, _ = (scheduler.schedule() for _ in range(3))
    assert lengths(second) == [(BLOCK - 3, 3, 3, 3)], "its last row fills the block"
    hand_in(scheduler, prompt, a=hit(1))
    hand_in(scheduler, second, a=outcome)
    assert not scheduler.requests
    # vLLM 0.33 hashes as many; 0.32 asks for the placeholders instead.
    known = stopping.num_computed_tokens - stopping.num_in_flight_tokens
    assert known == stopping.num_tokens - 1
    probe = request("b", *begin, TOKEN, *outcome.tokens, 99)
    assert scheduler.kv_cache_manager.get_computed_blocks(probe)[1] == cached


def test_a_tick_with_little_room_carries_fewer_of_the_drafts(make):
    scheduler = make(burst={"following": 8})
    add(scheduler, "a")
    prompt = scheduler.schedule()
    scheduler.max_num_scheduled_tokens = 5
    assert lengths(scheduler.schedule()) == [(2, 5, 5, 5)]
    assert prompt.tick.shapes == {"a": Shape(length=8)}


def test_a_preempted_request_has_no_state_to_go_on_from(make):
    scheduler = make(burst={"reentry": 3})
    add(scheduler, "a")
    prompt = scheduler.schedule()
    hand_in(scheduler, prompt, a=miss(1))
    scheduler.reset_prefix_cache(reset_running_requests=True)
    assert lengths(scheduler.schedule()) == [(0, 3, 0, 1)]


def test_structured_output_decodes_plainly(make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Request, "use_structured_output", True)
    monkeypatch.setattr(StructuredOutputManager, "accept_tokens", lambda *_: True)
    scheduler = make(burst={"reentry": 3, "following": 4})
    add(scheduler, "a")
    prompt = scheduler.schedule()
    assert prompt.tick.no_draft_req_ids == {"a"}
    assert not prompt.tick.reentry_req_ids
    hand_in(scheduler, prompt, a=Outcome("a", (TOKEN,), 0, 0))
    assert lengths(scheduler.schedule()) == [(2, 1, 0, 1)]


def test_statistics_count_drafts_and_hits_by_position(make):
    scheduler = make(burst={"reentry": 2, "following": 3})
    add(scheduler, "a", tokens=6)
    prompt, second = scheduler.schedule(), scheduler.schedule()
    hand_in(scheduler, prompt, a=hit(1))
    outputs = hand_in(scheduler, second, a=miss(2))
    stats = outputs[0].scheduler_stats.spec_decoding_stats
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (1, 3, 1)
    assert stats.num_accepted_tokens_per_pos == [1, 0, 0]
    assert stats.num_draft_tokens_per_pos == [1, 1, 1]
    metrics = scheduler.requests["a"].spec_decode_metrics
    assert (metrics.per_step_drafted, metrics.per_step_accepted) == ([1, 3], [1, 1])


def test_blocks_are_there_for_what_the_head_writes_behind_a_lane(make):
    scheduler = make(burst={"following": 8})
    assert scheduler.num_lookahead_tokens == 7
    add(scheduler, "a")
    scheduler.requests["a"].append_output_token_ids([1] * 24)
    scheduler.schedule()
    assert len(scheduler.kv_cache_manager.get_block_ids("a")[0]) == 2, "26 tokens, and 7 more"


def test_an_aborted_requests_name_starts_anew(make):
    scheduler = make(burst={"reentry": 3})
    add(scheduler, "a")
    hand_in(scheduler, scheduler.schedule(), a=miss(1))
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    add(scheduler, "a")
    assert lengths(scheduler.schedule()) == [(0, 2, 0, 1)]


def test_a_sampled_request_with_the_name_of_another_has_rates_of_its_kind(make):
    scheduler = make()
    add(scheduler, "a", temperature=0.0)
    scheduler.schedule()
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    add(scheduler, "a", temperature=1.0)
    scheduler.schedule()
    book = scheduler._admission._policy._policy.acceptance
    assert book.rates("a") != book.rates("a greedy one")
