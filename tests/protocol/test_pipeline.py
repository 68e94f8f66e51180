"""Random pipelines of one lane of one token: whatever is drafted, output equals plain decoding."""

from __future__ import annotations

import random

import pytest
from protocol.feedback import FeedbackPipeline
from protocol.pipeline import Pipeline
from protocol.request import Request, Settings


def make(seed: int, count: int, kind: type[Pipeline] = Pipeline, **settings) -> Pipeline:
    pipeline = kind(Settings(**settings), random.Random(seed))
    for number in range(count):
        pipeline.add_random(f"r{number}", length=25)
    return pipeline


def run(pipeline: Pipeline, disturbed: int = 0) -> None:
    """Run; aborted requests aside, all deliver what plain decoding does."""
    requests = list(pipeline.requests.values())
    pipeline.run(disturbed)
    for request in requests:
        assert request.output == request.truth[: len(request.output)]
        assert request.done or pipeline.settings.abort
    assert not pipeline.first.copied


@pytest.mark.parametrize("depth", range(9))
@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_output_equals_plain_decoding(stages: int, depth: int, acceptance: float):
    hits = misses = 0
    for seed in range(12):
        pipeline = make(
            seed, seed % 4 + 1, stages=stages, depth=depth, acceptance=acceptance, vary=False
        )
        run(pipeline)
        hits += pipeline.counts["hits"]
        misses += pipeline.counts["misses"]
    if depth:
        assert (hits > 0) == (acceptance > 0)
        assert (misses > 0) == (acceptance < 1)


@pytest.mark.parametrize(("hold", "no_draft"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.4), (0.0, 1.0)])
@pytest.mark.parametrize("depth", range(1, 9))
def test_preemption_keeps_output(depth: int, hold: float, no_draft: float):
    preemptions = 0
    for seed in range(60):
        pipeline = make(
            seed,
            3,
            stages=2 + seed % 3,
            depth=depth,
            acceptance=0.6,
            hold=hold,
            no_draft=no_draft,
            preempt=0.04,
        )
        run(pipeline, disturbed=260)
        preemptions += pipeline.counts["preemptions"]
    assert preemptions > 60


@pytest.mark.parametrize(("hold", "no_draft"), [(0.0, 0.0), (0.3, 0.4)])
@pytest.mark.parametrize("depth", range(1, 9))
def test_reset_of_running_requests_keeps_output(depth: int, hold: float, no_draft: float):
    dropped = 0
    for seed in range(60):
        pipeline = make(
            seed,
            1 + seed % 3,
            stages=2 + seed % 4,
            depth=depth,
            acceptance=(0.0, 0.6, 1.0)[seed % 3],
            hold=hold,
            no_draft=no_draft,
            preempt=0.02,
            reset=0.1,
        )
        run(pipeline, disturbed=260)
        dropped += pipeline.counts["dropped lanes"]
    assert dropped > 60


@pytest.mark.parametrize("depth", [1, 3])
def test_abort_leaves_the_others_alone_and_nothing_behind(depth: int):
    for seed in range(60):
        pipeline = make(seed, 4, stages=3, depth=depth, acceptance=0.6, abort=0.02)
        run(pipeline, disturbed=120)
        for name in ("last", "very-last"):
            pipeline.add(Request(name, [1], 1))
            pipeline.run()
        for book in (pipeline.book, *(stage.book for stage in pipeline.early)):
            assert len(book) <= 1
        assert len(pipeline.last.retired) <= 1
        assert len(pipeline.first.placement) <= 1


def test_stages_skip_ticks_that_are_known_to_be_stale():
    pipeline = make(0, 1, stages=3, depth=1, acceptance=0.0)
    run(pipeline)
    assert all(stage.skipped > 0 for stage in pipeline.early)


@pytest.mark.parametrize("depth", range(1, 5))
def test_if_all_drafts_are_right_every_tick_retires_a_token(depth: int):
    for seed in range(20):
        pipeline = make(seed, 1, stages=3, depth=depth, acceptance=1.0, chunked=False)
        length = next(iter(pipeline.requests.values())).length
        run(pipeline)
        assert pipeline.counts["ticks"] == length
        assert [stage.lanes_run for stage in (*pipeline.early, pipeline.last)] == [length] * 3


@pytest.mark.parametrize("depth", range(1, 5))
def test_if_all_drafts_are_wrong_the_last_stage_runs_the_re_entries_alone(depth: int):
    for seed in range(20):
        pipeline = make(seed, 1, stages=3, depth=depth, acceptance=0.0, chunked=False)
        length = next(iter(pipeline.requests.values())).length
        run(pipeline)
        assert pipeline.last.lanes_run == length
        assert pipeline.counts["ticks"] <= 1 + (length - 1) * pipeline.queue_size


@pytest.mark.parametrize("lags", [(1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_what_a_multi_depth_head_reads(depth: int, lags: tuple[int, ...]):
    """States of retired tokens only, through flushes, preemption and lanes without drafts."""
    read = 0
    for seed in range(40):
        pipeline = make(
            seed,
            seed % 3 + 1,
            FeedbackPipeline,
            stages=4,
            depth=depth,
            acceptance=0.7,
            hold=0.2,
            no_draft=0.2,
            preempt=0.02,
            reset=0.02,
            lags=lags,
        )
        run(pipeline, disturbed=200)
        read += pipeline.last.read
    assert read > 0
