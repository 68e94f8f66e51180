"""Lanes of several tokens on the stages: who drafts them, who is told, who waits for whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_runner import HIDDEN, FakeChannel, FakeDrafter, FakePort, batch_of

from vllm_ppsd.protocol import (
    Candidate,
    Draft,
    Drafts,
    Lane,
    Outcome,
    Shape,
    StagePass,
    Tick,
    TickBook,
    Verdict,
)
from vllm_ppsd.worker import non_last
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.middle import MiddleStage
from vllm_ppsd.worker.proposer import ProposerStage
from vllm_ppsd.worker.reentry import FinalStates, payload
from vllm_ppsd.worker.scorer import ScorerStage

CONFIG: Any = SimpleNamespace(
    max_drafts=1, feedback_stages=[], makes_noise=False, longest_burst=8, times_parts=True
)


PASSES = {Kind.PASSES: FakeChannel()}


class Pipeline:
    """Two stages, and what the last one samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(non_last, "get_tp_group", lambda: SimpleNamespace(world_size=1))
        self.drafts, self.verdicts, self.passes = FakeChannel(), FakeChannel(), FakeChannel()

        def channels(stage: int) -> Any:
            ends = {
                Kind.DRAFTS: self.drafts,
                Kind.VERDICTS: self.verdicts,
                Kind.PASSES: self.passes,
            }
            return SimpleNamespace(stage=stage, receivers=ends, senders=ends)

        self.port: Any = FakePort()
        self.first = ProposerStage(self.port, CONFIG, channels(0))
        self.first.drafter = self.drafter = FakeDrafter()
        self.last = ScorerStage(self.port, CONFIG, channels(1))
        self.last.load()
        self.ticks = TickBook()

    def run_first(self, tick: Tick) -> dict[str, list[int]]:
        """Return what every request embeds that the scheduler does not know."""
        tick = self.first.enter(tick)
        assert self.first.begin(tick)
        inputs = dict(self.first.inputs(tick))
        if tick.reentries:
            inputs |= self.first.entering(tick, [lane.request_id for lane in tick.lanes])
        states = self.first.run(batch_of(tick), lambda: self.port.empty_states(8))
        self.first.after_send(batch_of(tick), states)
        return {name: list(tokens) for name, tokens in inputs.items()}

    def run_last(self, tick: Tick, sampled: dict[str, list[int]]) -> Verdict:
        """Let lanes sample tokens, and row r of the LM head have the final state (r, r, …)."""
        rows = sum(max(1, lane.samples) for lane in tick.lanes)
        self.port.final = torch.arange(rows)[:, None].expand(rows, HIDDEN).to(torch.float32)
        batch, tick = None, self.last.enter(tick)
        if self.last.begin(tick):
            batch = batch_of(tick)
            self.last.run(batch, lambda: self.port.empty_states(8))
            self.last.after_execute()
        with self.last.sampling(batch):
            return self.last.judge(tick, sampled)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    return Pipeline(monkeypatch)


def missed(pipeline: Pipeline) -> Tick:
    """Send a prompt of which the draft, 103, is not what is sampled, 9; return its tick."""
    prompt = pipeline.ticks.tick([pipeline.ticks.lane("r", 0, 3, 3, 1)], reentry_req_ids=["r"])
    pipeline.run_first(prompt)
    verdict = pipeline.run_last(prompt, {"r": [9]})
    assert (verdict.outcomes["r"].missed, verdict.final) == (True, ("r",))
    pipeline.ticks.judge(prompt.lanes[0], verdict.outcomes["r"])
    return prompt


def test_a_following_lane_carries_as_many_drafts_as_the_tick_before_it_says(pipeline: Pipeline):
    prompt = pipeline.ticks.tick(
        [pipeline.ticks.lane("r", 0, 3, 3, 1)], shapes={"r": Shape(length=3)}
    )
    pipeline.run_first(prompt)
    assert pipeline.drafter.wanted[0][0].length == 3
    following = pipeline.ticks.tick(pipeline.ticks.level("r", 3))
    assert pipeline.run_first(following) == {"r": [103, 104, 105]}
    assert pipeline.run_last(prompt, {"r": [103]}).outcomes["r"].accepted == 1
    outcome = pipeline.run_last(following, {"r": [104, 7]}).outcomes["r"]
    assert (outcome.tokens, outcome.accepted, outcome.missed) == ((104, 7), 1, True)
    told = pipeline.last._bursts.expected
    assert told == ([[104, 105]],), "the sampler was told the lane's tokens"


def test_a_lane_that_replaces_drafts_stands_where_the_first_of_them_did(pipeline: Pipeline):
    missed(pipeline)
    root = pipeline.ticks.tick(
        [pipeline.ticks.lane("r", 3, 4, 1, 4)], shapes={"r": Shape(length=2)}
    )
    pipeline.drafter.replaces = 2
    assert pipeline.run_first(root) == {"r": [104, 105, 106]}
    assert list(pipeline.drafter.wanted[-1][0].embedded) == [104, 105, 106]
    following = pipeline.ticks.tick(pipeline.ticks.level("r", 7))
    assert pipeline.run_first(following) == {"r": [99, 106]}
    assert pipeline.drafter.wanted[-1][0].position == 7, "its two tokens stand at 5 and 6"
    # The first of the replaced drafts is wrong, as stage 0 thought.
    outcome = pipeline.run_last(root, {"r": [104, 99]}).outcomes["r"]
    assert (outcome.tokens, outcome.continues, outcome.redrafted) == ((104, 99), 0, 1)
    assert pipeline.last.enter(following).lanes[0].position == 5
    assert pipeline.run_last(following, {"r": [106, 7]}).outcomes["r"].tokens == (106, 7)


def test_after_a_miss_drafts_go_on_from_the_targets_final_state(pipeline: Pipeline):
    prompt = missed(pipeline)
    root = pipeline.ticks.tick([pipeline.ticks.lane("r", 3, 4, 1, 4)])
    assert root.lanes[0].after == prompt.number
    assert pipeline.run_first(root) == {"r": [104, 105, 106]}
    final, tokens, (wanted,) = pipeline.drafter.gone_on[0]
    assert (final.tolist(), tokens) == ([[0.0] * HIDDEN], [9])
    assert (wanted.row, wanted.position, wanted.length) == (0, 4, 3)
    entered, behind = (message for message, _ in pipeline.drafts.messages)
    assert [draft.token for draft in entered.entered["r"]] == [104, 105, 106]
    assert not entered.candidates and not behind.entered
    outcome = pipeline.run_last(root, {"r": [104, 105, 106, 107]}).outcomes["r"]
    assert (outcome.tokens, outcome.continues) == ((104, 105, 106, 107), 0)
    assert len(pipeline.first._final) == 0, "no state is kept behind its re-entry"


def test_of_a_cut_burst_the_state_is_that_of_the_last_token_that_counts(pipeline: Pipeline):
    missed(pipeline)
    root = pipeline.ticks.tick([pipeline.ticks.lane("r", 3, 4, 1, 4)], reentry_req_ids=["r"])
    pipeline.run_first(root)
    verdict = pipeline.run_last(root, {"r": [104, 105, 8]})
    assert verdict.outcomes["r"].tokens == (104, 105, 8)
    pipeline.ticks.judge(root.lanes[0], verdict.outcomes["r"])
    again = pipeline.ticks.tick([pipeline.ticks.lane("r", 6, 2, 1, 2)])
    assert pipeline.run_first(again) == {"r": [107]}
    final, tokens, _ = pipeline.drafter.gone_on[1]
    assert (final.tolist(), tokens) == ([[2.0] * HIDDEN], [8])


def test_a_state_that_nobody_asked_for_is_not_sent(pipeline: Pipeline):
    prompt = pipeline.ticks.tick([pipeline.ticks.lane("r", 0, 3, 3, 1)])
    pipeline.run_first(prompt)
    assert pipeline.run_last(prompt, {"r": [9]}).final == ()
    assert pipeline.verdicts.messages[-1][1] == []


def test_a_root_without_drafts_and_a_request_that_left_drop_the_state(pipeline: Pipeline):
    for left in (False, True):
        missed(pipeline)
        pipeline.first._hear()
        assert len(pipeline.first._final) == 1
        lanes = [] if left else [pipeline.ticks.lane("r", 3, 1, 1, 1)]
        pipeline.first.begin(pipeline.ticks.tick(lanes, left=["r"] if left else []))
        assert len(pipeline.first._final) == 0


def test_a_middle_stage_embeds_nothing_of_a_re_entry_burst(monkeypatch: pytest.MonkeyPatch):
    receivers = {Kind.VERDICTS: FakeChannel()}
    channels: Any = SimpleNamespace(stage=1, receivers=receivers, senders=PASSES)
    port: Any = FakePort()
    middle = MiddleStage(port, CONFIG, channels)
    tick = Tick(0, (Lane("r", 0, 3, length=4, drafted=3, samples=4, after=0),))
    assert middle.entering(tick, ["r"]) == {"r": [0, 0, 0]}


def test_a_middle_stage_hears_of_replaced_drafts_before_the_next_tick():
    drafts = FakeChannel()
    receivers = {Kind.VERDICTS: FakeChannel(), Kind.DRAFTS: drafts}
    channels: Any = SimpleNamespace(stage=1, receivers=receivers, senders=PASSES)
    port: Any = FakePort()
    middle = MiddleStage(port, CONFIG, channels)
    root = Tick(4, (Lane("r", 4, 3, length=4, drafted=3, samples=4, after=0),))
    assert middle.enter(root) is root
    assert middle.enter(Tick(5, ())).lanes == ()
    burst = (Draft(1), Draft(2), Draft(3))
    drafts.send(Drafts(4, entered={"r": burst}))
    drafts.send(Drafts(4, {"r": (Candidate(burst, replaces=1),)}))
    following = Tick(6, (Lane("r", 6, 7, length=3, drafted=3, samples=3, behind=4),))
    assert middle.enter(following).lanes[0].position == 6
    assert not drafts.messages


@pytest.mark.parametrize("depth", [0, 1])
def test_the_scheduler_hears_what_later_stages_took(pipeline: Pipeline, depth: int):
    prompt = missed(pipeline)
    root = pipeline.ticks.tick([pipeline.ticks.lane("r", 3, 4, 1, 4)], depth=depth)
    middle = StagePass(1, 4, True, 0.5)
    pipeline.passes.send(middle)
    pipeline.run_first(root)
    passes = pipeline.run_last(root, {"r": [9]}).passes
    assert passes[0] == middle
    # Where a lane follows, stage 0 runs it meanwhile.
    assert (passes[1].stage, passes[1].rows, passes[1].alone) == (1, 4, not depth)
    assert 0 < passes[1].seconds < 1
    assert not pipeline.last._watch.passed(prompt, 1), "a prompt is no measure"


def test_a_middle_stage_tells_the_last_one_what_its_passes_take():
    passes = FakeChannel()
    channels: Any = SimpleNamespace(
        stage=1, receivers={Kind.VERDICTS: FakeChannel()}, senders={Kind.PASSES: passes}
    )
    port: Any = FakePort()
    middle = MiddleStage(port, SimpleNamespace(max_drafts=0, times_parts=True), channels)
    for number, length in enumerate((4, 1)):
        tick = Tick(number, (Lane("r", number, 3, length=length, samples=1),))
        middle.begin(tick)
        middle.after_send(batch_of(tick), middle.run(batch_of(tick), lambda: None))
    ((seen, _),) = passes.messages
    assert (seen.stage, seen.rows, seen.alone) == (1, 1, False)


def test_final_states_are_of_the_rows_that_the_last_tokens_were_sampled_from():
    lanes = [
        Lane("a", 5, 10, length=3, samples=3),
        Lane("chunk", 5, 0, length=20, samples=0),
        Lane("b", 5, 7, length=2, samples=2),
    ]
    final = torch.arange(6.0)[:, None].expand(6, HIDDEN)
    outcomes = {
        "b": Outcome("b", (1,), compared=1, accepted=0),
        "a": Outcome("a", (1, 2), compared=2, accepted=1),
    }
    sent = payload(final, lanes, list(outcomes.values()))
    book = FinalStates(HIDDEN, torch.float32, torch.device("cpu"))
    book.receive(Verdict(5, outcomes, ("b", "a")), [bytes(one) for one in sent], "ab".__contains__)
    roots = [Lane("a", 9, 12, length=2, drafted=1, samples=2, after=5)]
    tokens, states = book.take(roots)
    assert (tokens, states.tolist()) == ([2], [[1.0] * HIDDEN])
    with pytest.raises(LookupError, match="final state of tick 5"):
        book.take(roots)
    with pytest.raises(LookupError, match="newest is of tick 5"):
        book.take([Lane("b", 9, 8, length=2, drafted=1, samples=2, after=6)])


def test_the_final_state_of_a_request_that_has_left_is_not_kept():
    book = FinalStates(HIDDEN, torch.float32, torch.device("cpu"))
    outcomes = {name: Outcome(name, (7,), 1, 0) for name in "ab"}
    states = torch.randn(2, HIDDEN)
    verdict = Verdict(5, outcomes, ("a", "b"))
    book.receive(verdict, [states.numpy().tobytes()], "b".__contains__)
    assert list(book._states) == ["b"]
    assert torch.equal(book._states["b"][2], states[1])
