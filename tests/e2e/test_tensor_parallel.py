"""Two tensor parallel ranks a stage, in two stages and in one: plain decoding's output."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.reference import Reference
from support.runners import V2_IN_LONG_RUNS, runs_on
from support.tiny import make_tiny_model
from vllm import SamplingParams

from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PROMPTS = [list(range(5, 25)), list(range(40, 43))]
GREEDY = [e.params(32)]
SAMPLED = [e.params(32, temperature=0.9, seed=7), e.params(32, temperature=1.0)]
OPTIONS = {"tensor_parallel_size": 2, "dtype": "float32"}


def run(llm, samplings: list[SamplingParams]) -> list[e.Output]:
    return [e.generate(llm, prompt, sampling) for prompt in PROMPTS for sampling in samplings]


@runs_on(V2_IN_LONG_RUNS)
def test_two_stages_of_two_ranks(tmp_path: Path):
    model = tiny_model(tmp_path, tied=True, draft_token_ids=list(range(0, 512, 2)))
    with e.engine(model, ppsd=e.PLAIN, **OPTIONS) as plain:
        expected = run(plain, GREEDY + SAMPLED)
    with e.engine(model, ppsd={}, **OPTIONS) as llm:
        assert run(llm, GREEDY + SAMPLED) == expected
        e.assert_drafted(llm)


@runs_on(V2_IN_LONG_RUNS)
def test_one_stage_of_two_ranks(tmp_path: Path):
    model = tiny_model(tmp_path, tied=False, draft_token_ids=None)
    reference = Reference(model)
    with e.engine(model, stages=1, ppsd={"draft_threshold": 0.0}, **OPTIONS) as llm:
        found = [output.tokens for output in run(llm, GREEDY)]
        assert found == [reference.greedy(prompt, 32) for prompt in PROMPTS]
        e.assert_drafted(llm)


def tiny_model(folder: Path, tied: bool, draft_token_ids: list[int] | None) -> Path:
    model = make_tiny_model(folder / "qwen3", "qwen3", tied=tied)
    init_head(
        str(model),
        model / "ppsd",
        exit_layer=3,
        head_type="transformer",
        draft_token_ids=draft_token_ids,
    )
    return model
