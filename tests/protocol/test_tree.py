"""Random pipelines with bursts and siblings, over everything at once, and counts of their work."""

from __future__ import annotations

import random

import pytest
from protocol.pipeline import Pipeline
from protocol.request import Settings
from protocol.trees import run_trees

GROUPS, SIZE = 20, 1000


@pytest.mark.parametrize("group", range(GROUPS))
def test_output_is_the_models_and_no_stale_entry_is_read(group: int):
    """20,000 pipelines; what they check is in ``pipeline``, ``early`` and ``stages``."""
    counts = run_trees(range(group * SIZE, (group + 1) * SIZE))
    for event in (
        "hits",
        "misses",
        "cuts",
        "shortened",
        "runners-up",
        "siblings",
        "copies",
        "pruned",
        "preemptions",
        "resets",
        "dropped lanes",
        "aborts",
        "names used again",
    ):
        assert counts[event] > 20, event


def one_request(seed: int, **settings) -> tuple[Pipeline, int]:
    """Run one request undisturbed; return its pipeline and its length."""
    pipeline = Pipeline(Settings(vary=False, chunked=False, **settings), random.Random(seed))
    request = pipeline.add_random("a", length=30)
    pipeline.run()
    assert request.output == request.truth
    return pipeline, request.length


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize(("burst", "reentry"), [(1, 0), (1, 7), (2, 1), (3, 0), (8, 7)])
def test_if_all_drafts_are_right_every_tick_retires_a_burst(depth: int, burst: int, reentry: int):
    stages = 4
    for seed in range(10):
        settings = Settings(
            stages, depth, 1.0, burst=burst, reentry=reentry, vary=False, chunked=False
        )
        pipeline = Pipeline(settings, random.Random(seed))
        length = pipeline.add_random("a", length=30).length
        rounds = pipeline.run_in_step()
        ticks = 1 + max(0, -(-(length - reentry - 1) // burst))
        assert pipeline.counts["ticks"] == ticks
        assert [stage.lanes_run for stage in (*pipeline.early, pipeline.last)] == [ticks] * stages
        # Stage 0 holds tick i until tick i - depth - 1 has passed all stages.
        together = min(depth + 1, stages)
        assert rounds == stages * (1 + (ticks - 1) // together) + (ticks - 1) % together


@pytest.mark.parametrize("reentry", range(8))
def test_depth_0_is_draft_then_verify(reentry: int):
    for seed in range(10):
        pipeline, length = one_request(seed, depth=0, acceptance=1.0, reentry=reentry)
        assert pipeline.counts["ticks"] == -(-length // (reentry + 1))


@pytest.mark.parametrize("width", range(1, 9))
def test_the_last_stage_runs_one_lane_for_every_outcome(width: int):
    for seed in range(20):
        pipeline, _ = one_request(
            seed, stages=5, depth=4, slots=4 * width, width=width, burst=2, reentry=1
        )
        assert pipeline.last.lanes_run == pipeline.counts["outcomes"]
        assert pipeline.first.lanes_run + pipeline.first.pruned == pipeline.counts["lanes"]
        work = [stage.lanes_run for stage in (*pipeline.early, pipeline.last)]
        assert work == sorted(work, reverse=True)


def test_more_candidates_save_misses():
    def missed(width: int) -> float:
        misses = outcomes = 0
        for seed in range(60):
            pipeline, _ = one_request(
                seed, stages=2, depth=1, acceptance=0.5, slots=3 * width, width=width
            )
            misses += pipeline.counts["misses"]
            outcomes += pipeline.counts["outcomes"]
        return misses / outcomes

    one, two, four, eight = (missed(width) for width in (1, 2, 4, 8))
    assert one > two > four > eight
