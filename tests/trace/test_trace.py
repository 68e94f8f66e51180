"""Traces, by the simulator: what is counted, what is exported, what is drawn."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from planning.test_cost_model import profile
from support.simulator.simulate import Simulation

from vllm_ppsd.protocol import Lane, Outcome, Tick, Verdict
from vllm_ppsd.trace.chrome import events
from vllm_ppsd.trace.picture import draw
from vllm_ppsd.trace.recorder import Recorder
from vllm_ppsd.trace.spans import LaneResult, StageRecord, Trace, TracedLane
from vllm_ppsd.worker.events import What


@pytest.fixture(scope="module")
def runs() -> dict[str, Trace]:
    made = profile()
    return {
        "plain": Simulation(made, (17, 13), 0.0, 0, tokens=40).run(),
        "PPSD": Simulation(made, (17, 13), 0.7, 1, tokens=40).run(),
    }


def test_plain_decoding_leaves_each_stage_idle_while_the_other_works(runs: dict[str, Trace]):
    first, second = runs["plain"].shares()
    assert first.stale == second.stale == 0
    assert first.verified + second.verified == pytest.approx(33.5 / 34.8, rel=0.01)
    for share in (first, second):
        assert sum(share) == pytest.approx(1)


def test_ppsd_is_faster_and_its_misses_show(runs: dict[str, Trace]):
    trace = runs["PPSD"]
    assert trace.ms_per_token() < runs["plain"].ms_per_token()
    hits, misses = trace.count(LaneResult.HIT), trace.count(LaneResult.MISS)
    assert hits > misses > 0
    assert hits + misses + trace.count(LaneResult.RETIRED) == 40
    first, last = trace.shares()
    assert first.stale > 0 == last.stale
    assert sum(end - start for _, start, end in trace.gaps()) == pytest.approx(
        (first.idle + last.idle) * (trace.window()[1] - trace.window()[0])
    )


def test_the_export_has_every_span_every_flush_and_the_idle_time(runs: dict[str, Trace]):
    found = events(runs)["traceEvents"]
    slices = [event for event in found if event["ph"] == "X"]
    spans = sum(len(trace.spans) for trace in runs.values())
    gaps = sum(len(trace.gaps()) for trace in runs.values())
    assert len(slices) == spans + gaps
    flushes = [event for event in found if event["ph"] == "i"]
    assert len(flushes) == runs["PPSD"].count(LaneResult.MISS)
    assert {event["cat"] for event in slices} == {"verified", "stale", "idle", "hold"}
    assert min(event["ts"] for event in slices) == 0


def test_the_picture_is_drawn(runs: dict[str, Trace], tmp_path: Path):
    draw(runs, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 10_000


def test_records_travel_as_json(runs: dict[str, Trace]):
    lanes = [TracedLane("r", 3, 1, LaneResult.HIT)]
    record = StageRecord(stage=1, spans=runs["PPSD"].spans[:3], ticks=[lanes])
    assert StageRecord.model_validate_json(record.model_dump_json()) == record


def test_stages_that_saw_different_ticks_are_refused():
    lanes = [TracedLane("r", 3, 1)]
    records = [
        StageRecord(stage=0, spans=[], ticks=[lanes, lanes]),
        StageRecord(stage=1, spans=[], ticks=[lanes]),
    ]
    with pytest.raises(ValueError, match="2 on stage 0, 1 on stage 1"):
        Trace(records)


def test_lanes_of_several_tokens_count_by_tokens_and_drafts():
    recorder = Recorder(1, synchronizes=False)
    outcomes = [
        (Lane("r", 0, 0, length=9), Outcome("r", (7,), 1, 1, 0)),
        (Lane("r", 1, 9, length=3, drafted=3, samples=3, behind=0), Outcome("r", (7, 8), 2, 1)),
        (Lane("r", 2, 11, length=4, drafted=3, samples=4), Outcome("r", (7, 8, 9, 6), 3, 3)),
        (Lane("r", 3, 15, length=2, drafted=1, samples=2), None),
    ]
    for lane, outcome in outcomes:
        recorder.tick(Tick(lane.tick, (lane,)))
        with recorder.span(What.SAMPLE):
            time.sleep(0.002)
        recorder.judged(Verdict(lane.tick, {"r": outcome} if outcome else {}))
    trace = Trace([recorder.record()])
    assert trace.decoding == [1, 2, 3], "the prompt is no decode tick"
    assert [lane.tokens for (lane,) in trace.ticks[1:3]] == [2, 4]
    assert trace.acceptance == pytest.approx(4 / 5)
    begin, end = trace.window()
    assert trace.ms_per_token() == pytest.approx((end - begin) / 4)
    assert trace.lanes() == {(False, 3): 1, (True, 3): 1, (True, 1): 1}
