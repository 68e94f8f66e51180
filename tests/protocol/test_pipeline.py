"""Random pipelines: whatever is drafted, delivered output equals plain decoding."""

from __future__ import annotations

import random
from typing import Any

import pytest
from protocol.pipeline import Pipeline, Request, oracle


def drafter(rng: random.Random, acceptance: float):
    return lambda context, token: token if rng.random() < acceptance else token + 1


def make(
    seed: int,
    stages: int,
    depth: int,
    acceptance: float,
    count: int,
    hold: float = 0.0,
    quiet: float = 0.0,
    **feedback: Any,
) -> Pipeline:
    rng = random.Random(seed)
    pipeline = Pipeline(stages, depth, drafter(rng, acceptance), rng, hold, quiet, **feedback)
    for i in range(count):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 9))]
        pipeline.add(Request(f"r{i}", prompt, rng.randint(1, 25)))
    return pipeline


@pytest.mark.parametrize("depth", range(9))
@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_output_equals_plain_decoding(stages: int, depth: int, acceptance: float):
    hits = misses = 0
    for seed in range(12):
        pipeline = make(seed, stages, depth, acceptance, count=seed % 4 + 1)
        requests = list(pipeline.requests.values())
        pipeline.run()
        for request in requests:
            assert request.output == oracle(request.prompt, request.length)
        hits += pipeline.hits
        misses += pipeline.misses
    if depth:
        assert (hits > 0) == (acceptance > 0)
        assert (misses > 0) == (acceptance < 1)


@pytest.mark.parametrize(("hold", "quiet"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.4), (0.0, 1.0)])
@pytest.mark.parametrize("depth", range(1, 9))
def test_preemption_keeps_output(depth: int, hold: float, quiet: float):
    for seed in range(60):
        pipeline = make(seed, 2 + seed % 3, depth, 0.6, count=3, hold=hold, quiet=quiet)
        requests = list(pipeline.requests.values())
        for _ in range(40):
            for action in pipeline.rng.choices(
                [
                    pipeline.schedule,
                    pipeline.run_first_stage,
                    pipeline.run_last_stage,
                    pipeline.receive,
                ],
                k=pipeline.rng.randint(1, 12),
            ):
                action()
            if pipeline.requests and pipeline.rng.random() < 0.2:
                victim = pipeline.rng.choice(list(pipeline.requests.values()))
                pipeline.preempt(victim)
        pipeline.run()
        for request in requests:
            assert request.output == oracle(request.prompt, request.length)


@pytest.mark.parametrize("depth", [1, 3])
def test_abort_leaves_the_others_alone_and_nothing_behind(depth: int):
    for seed in range(60):
        pipeline = make(seed, 3, depth, 0.6, count=4)
        requests = list(pipeline.requests.values())
        for _ in range(30):
            for action in (
                pipeline.schedule,
                pipeline.run_first_stage,
                pipeline.run_last_stage,
                pipeline.receive,
            ):
                if pipeline.rng.random() < 0.7:
                    action()
            if pipeline.rng.random() < 0.05 and pipeline.requests:
                pipeline.abort(pipeline.rng.choice(list(pipeline.requests)))
        pipeline.run()
        for request in requests:
            whole = oracle(request.prompt, request.length)
            assert request.output == whole[: len(request.output)]
        pipeline.add(Request("last", [1], 1))
        pipeline.run()
        pipeline.add(Request("very-last", [1], 1))
        pipeline.run()
        assert len(pipeline.drafts) <= 1
        assert len(pipeline.retired) <= 1


def test_stage_0_skips_ticks_that_are_known_to_be_stale():
    pipeline = make(0, 2, 1, 0.0, count=1)
    pipeline.run()
    assert pipeline.skipped > 0


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("lags", [(1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_what_a_multi_depth_head_reads(depth: int, lags: tuple[int, ...], waits: bool):
    """States of retired tokens only, through flushes, preemption and quiet lanes."""
    read = late = 0
    for seed in range(40):
        pipeline = make(
            seed, 4, depth, 0.7, count=seed % 3 + 1, hold=0.2, quiet=0.2, lags=lags, waits=waits
        )
        requests = list(pipeline.requests.values())
        for _ in range(30):
            for action in (pipeline.schedule, pipeline.run_first_stage, pipeline.run_last_stage):
                action()
            pipeline.receive()
            if pipeline.requests and pipeline.rng.random() < 0.05:
                pipeline.preempt(pipeline.rng.choice(list(pipeline.requests.values())))
        pipeline.run()
        for request in requests:
            assert request.output == oracle(request.prompt, request.length)
        read += pipeline.read
        late += pipeline.read_late
    assert read > 0
    assert (late > 0) == (not waits)
