"""One request: output is bit-identical to the same engine's without PPSD, in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.runners import BOTH

from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import LaneResult

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("runner"), BOTH]

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
VARIANTS = {
    "greedy": e.params(32),
    "temperature": e.params(32, temperature=0.9, seed=7),
    "unseeded": e.params(32, temperature=1.0),
    "top_p, top_k": e.params(32, temperature=1.2, seed=5, top_p=0.8, top_k=20),
    "penalties": e.params(32, repetition_penalty=1.3, presence_penalty=0.5, min_tokens=8),
    "frequency": e.params(32, temperature=0.7, seed=2, frequency_penalty=0.8),
    "min_p, bias": e.params(32, temperature=1.0, seed=3, min_p=0.05, logit_bias={9: 2.0}),
    "allowed": e.params(32, allowed_token_ids=list(range(3, 512, 5))),
    "bad words": e.params(32, bad_words=[f"t{i}" for i in range(3, 10)]),
    "one token": e.params(1),
    "two tokens": e.params(2),
    "three tokens": e.params(3),
    "stop": e.params(32, ignore_eos=False, stop_token_ids=list(range(0, 512, 17))),
    "stop string": e.params(32, stop=["7", "t31"]),
    "logprobs": e.params(24, logprobs=5, prompt_logprobs=1),
}


# Sampling happens on the last stage alike, however many there are.
BY_STAGES = {2: list(VARIANTS), 3: ["greedy", "temperature", "two tokens"]}


def run(llm, variants: list[str]) -> dict[str, list[e.Output]]:
    return {
        name: [e.generate(llm, prompt, VARIANTS[name]) for prompt in PROMPTS] for name in variants
    }


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
