"""Recording: what was in flight when a request ended counts for nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import LaneResult, StageRecord, TracedLane


class Engine:
    """Answers a prompt of three tokens with two, and has one lane more in flight."""

    def collective_rpc(self, name: str) -> list[str]:
        outcomes = [LaneResult.HIT, LaneResult.HIT, LaneResult.HIT]
        lanes = zip([(0, 3), (3, 1), (4, 1)], outcomes, strict=True)
        last = [[TracedLane("0-af", *where, outcome)] for where, outcome in lanes]
        first = [[lane._replace(outcome=None) for lane in tick] for tick in last]
        ticks = enumerate([first, last])
        return [StageRecord(stage=n, spans=[], ticks=t).model_dump_json() for n, t in ticks]

    def generate(self, *_: Any, **__: Any) -> list[SimpleNamespace]:
        output = SimpleNamespace(token_ids=[8, 9])
        return [SimpleNamespace(request_id="0", prompt_token_ids=[5, 6, 7], outputs=[output])]


def test_a_lane_behind_the_last_token_is_stale():
    trace = record(Engine(), [], None)
    assert [lane.outcome for (lane,) in trace.ticks] == [
        LaneResult.HIT,
        LaneResult.HIT,
        LaneResult.STALE,
    ]
