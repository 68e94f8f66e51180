"""The stages of a pipeline without vLLM: what each does with a tick, and what they tell others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_runner import FakeChannel, FakeDrafter, FakePort, batch_of, states_of

from vllm_ppsd.protocol import Draft, Outcome, TickBook, Verdict
from vllm_ppsd.worker import non_last
from vllm_ppsd.worker.events import What
from vllm_ppsd.worker.messages import Kind
from vllm_ppsd.worker.middle import MiddleStage
from vllm_ppsd.worker.proposer import ProposerStage
from vllm_ppsd.worker.scorer import ScorerStage

CONFIG: Any = SimpleNamespace(
    max_drafts=1, feedback_stages=[], makes_noise=False, longest_burst=1, times_parts=True
)
STATES = FakePort().empty_states(8)


class Events:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def tick(self, tick: Any) -> None:
        self.seen.append(tick.number)

    def span(self, what: What) -> Any:
        self.seen.append(what)
        from contextlib import nullcontext

        return nullcontext()

    def since_last(self, what: What) -> None:
        self.seen.append(what)

    def judged(self, verdict: Verdict) -> None:
        self.seen.append(verdict)


class Pipeline:
    """Three stages that share their channels, and ticks to send through them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(non_last, "get_tp_group", lambda: SimpleNamespace(world_size=1))
        drafts, passes = FakeChannel(), FakeChannel()
        self.verdicts = [FakeChannel(), FakeChannel()]

        def channels(stage: int) -> Any:
            def fan_out(message: Any, to_first: Any = ()) -> None:
                first, *others = self.verdicts
                first.send(message, to_first)
                for one in others:
                    one.send(message)

            receivers: dict[Kind, Any] = {Kind.DRAFTS: drafts, Kind.PASSES: passes}
            if stage < 2:
                receivers[Kind.VERDICTS] = self.verdicts[stage]
            verdicts = SimpleNamespace(send=fan_out)
            senders = {Kind.DRAFTS: drafts, Kind.VERDICTS: verdicts, Kind.PASSES: passes}
            return SimpleNamespace(stage=stage, receivers=receivers, senders=senders)

        port: Any = FakePort()
        self.first = ProposerStage(port, CONFIG, channels(0))
        self.first.drafter = self.drafter = FakeDrafter()
        self.middle = MiddleStage(port, CONFIG, channels(1))
        self.last = ScorerStage(port, CONFIG, channels(2))
        self.ticks = TickBook()

    def tick(self, position: int, length: int, known: int, samples: int = 1, **rest: Any) -> Any:
        lane = self.ticks.lane("r", position, length, known, samples)
        return self.ticks.tick([lane], **rest)

    def run_first(self, tick: Any) -> Any:
        """Return what stage 0 embeds, and what its layers make."""
        tick = self.first.enter(tick)
        assert self.first.begin(tick)
        inputs = self.first.inputs(tick)
        states = self.first.run(batch_of(tick), lambda: STATES)
        self.first.after_send(batch_of(tick), states)
        return list(inputs["r"]), states

    def run_last(self, tick: Any, token: int) -> Verdict:
        sampled: list[int] = []
        if self.last.begin(tick):
            self.last.run(batch_of(tick), lambda: STATES)
            self.last.after_execute()
            sampled = [] if self.last.discards(tick.lanes[0]) else [token]
        with self.last.sampling(None):
            return self.last.judge(tick, {"r": sampled})


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    return Pipeline(monkeypatch)


def test_a_hit_goes_on_and_a_miss_is_skipped_until_the_true_token_enters(pipeline: Pipeline):
    first, second, third = (pipeline.tick(0, 3, 3), pipeline.tick(3, 1, 0), pipeline.tick(4, 1, 0))
    assert pipeline.run_first(first) == ([], STATES)
    assert pipeline.run_first(second) == ([103], STATES)
    hit = pipeline.run_last(first, 103).outcomes["r"]
    assert (hit.tokens, hit.accepted, hit.continues, hit.missed) == ((103,), 1, 0, False)
    assert pipeline.run_first(third) == ([104], STATES)
    assert pipeline.run_last(second, 9).outcomes["r"].missed
    skipped = pipeline.tick(5, 1, 0)
    assert pipeline.run_first(skipped) == ([105], None)
    assert pipeline.run_last(third, 7).outcomes == {}
    assert pipeline.run_last(skipped, 7) == Verdict(skipped.number)
    root = pipeline.tick(4, 1, 1)
    assert pipeline.run_first(root) == ([], STATES)
    assert pipeline.run_last(root, 105).outcomes["r"].accepted == 1


def test_a_middle_stage_skips_what_it_has_heard_to_be_stale(pipeline: Pipeline):
    prompt, behind = pipeline.tick(0, 3, 3), pipeline.tick(3, 1, 0)
    miss = Verdict(prompt.number, {"r": Outcome("r", (9,), compared=1, accepted=0)})
    pipeline.middle.begin(prompt)
    assert pipeline.middle.run(batch_of(prompt), lambda: STATES) is STATES
    pipeline.verdicts[1].send(miss)
    pipeline.middle.begin(behind)
    assert pipeline.middle.run(batch_of(behind), lambda: STATES) is None


def test_nothing_is_drafted_behind_chunks_and_where_no_draft_is_wanted(pipeline: Pipeline):
    pipeline.run_first(pipeline.tick(0, 3, 3, samples=0))
    pipeline.run_first(pipeline.tick(3, 2, 2, no_draft_req_ids=["r"]))
    assert pipeline.drafter.wanted == [[], []]
    assert [sorted(m.candidates) for m, _ in pipeline.last._drafts.messages] == [[], []]


def test_what_is_drafted_is_what_the_last_stage_compares(pipeline: Pipeline):
    tick = pipeline.tick(0, 3, 3)
    pipeline.run_first(tick)
    ((message, _),) = pipeline.last._drafts.messages
    (candidate,) = message.candidates["r"]
    assert (message.tick, candidate.drafts) == (tick.number, (Draft(103),))


def test_a_request_that_left_is_forgotten_everywhere(pipeline: Pipeline):
    tick = pipeline.tick(0, 3, 3)
    pipeline.run_first(tick)
    pipeline.run_last(tick, 103)
    gone = pipeline.ticks.tick([], left=["r"])
    for stage in (pipeline.first, pipeline.middle, pipeline.last):
        stage.begin(gone)
    assert len(pipeline.first._draft_book) == len(pipeline.last._book) == len(pipeline.ticks) == 0


def test_what_stages_do_is_told_to_a_sink(pipeline: Pipeline):
    pipeline.first.events, pipeline.last.events = first, last = Events(), Events()
    tick = pipeline.tick(0, 3, 3)
    pipeline.run_first(tick)
    verdict = pipeline.run_last(tick, 103)
    assert first.seen == [tick.number, What.HOLD, What.LAYERS, What.DRAFT]
    assert last.seen == [tick.number, What.LAYERS, What.LM_HEAD, What.SAMPLE, verdict]


@pytest.mark.parametrize("names", [["hidden_states"], ["hidden_states", "residual"]])
def test_states_may_come_without_a_residual(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, names: list[str]
):
    states, tick = states_of(8, *names), pipeline.tick(0, 3, 3)
    monkeypatch.setattr(FakePort, "empty_states", lambda _, tokens: states_of(tokens, *names))
    pipeline.first.warm_up(8)
    pipeline.first.after_send(batch_of(tick), states)
    for seen in pipeline.drafter.states:
        assert seen.hidden is not None
        assert (seen.residual is None) == ("residual" not in names)
    sent: list[Any] = []
    pipeline.middle._feedback_sender = SimpleNamespace(send=lambda _, rows: sent.append(rows))
    pipeline.middle.begin(tick)
    pipeline.middle.run(batch_of(tick), lambda: states)
    assert sent[0].tolist() == [[len(names)] * 4]
