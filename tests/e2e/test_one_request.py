"""One request: output is bit-identical to the same engine's without PPSD, in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.runners import BOTH
from support.variants import PROMPTS, VARIANTS, run

from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import LaneResult

pytestmark = [pytest.mark.e2e, *BOTH]

# Sampling happens on the last stage alike, however many there are.
BY_STAGES = {2: list(VARIANTS), 3: ["greedy", "temperature", "two tokens"]}


@pytest.mark.parametrize("stages", [2, pytest.param(3, marks=pytest.mark.long)])
def test_output_is_bit_identical(tiny_llama: Path, stages: int):
    variants = BY_STAGES[stages]
    with e.engine(tiny_llama, stages=stages, ppsd=e.PLAIN) as plain:
        expected = run(plain, variants)
    with e.engine(tiny_llama, stages=stages, ppsd={}) as llm:
        assert run(llm, variants) == expected
        e.assert_drafted(llm)
        check_trace(llm, stages)
        assert e.generate(llm, PROMPTS[0], VARIANTS["greedy"]) == expected["greedy"][0]


def check_trace(llm, stages: int) -> None:
    """A trace counts the drafts that vLLM's metrics count, and accounts for all time."""
    _, hits, misses = e.counts(llm)
    prompt = {"prompt_token_ids": PROMPTS[0]}
    trace = record(llm, [prompt], VARIANTS["greedy"])
    _, hits_after, misses_after = e.counts(llm)
    first = trace.ticks[0][0]
    assert (first.position, first.length) == (0, len(PROMPTS[0]))
    seen = [lane.outcome for lanes in trace.ticks for lane in lanes]
    assert seen.count(LaneResult.HIT) == hits_after - hits
    assert seen.count(LaneResult.MISS) == misses_after - misses > 0
    assert seen.count(LaneResult.STALE) > 0
    assert trace.stages == stages
    for share in trace.shares():
        assert sum(share) == pytest.approx(1)
        assert min(share) >= 0
