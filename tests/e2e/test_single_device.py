"""One device: drafts of every kind, verified by the whole target."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.distribution import check_distribution
from support.heads import with_steps
from support.reference import Reference
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head

pytestmark = pytest.mark.e2e

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 190)), [3], [9, 9, 9, 9]]
TOKENS = 40
DRAFTS = 3


@pytest.mark.parametrize(
    ("family", "kind", "runner"),
    [
        pytest.param("llama", "transformer", "V1", marks=pytest.mark.long),
        ("llama", "steps", "V1"),
        ("qwen2", "lens", "V1"),
        pytest.param("qwen3", "transformer", "V1", marks=pytest.mark.long),
        pytest.param("phi3", "transformer", "V1", marks=pytest.mark.long),
        pytest.param("llama", "steps", "V2", marks=pytest.mark.long),
        pytest.param("llama", "transformer", "V2", marks=pytest.mark.long),
        pytest.param("qwen2", "lens", "V2", marks=pytest.mark.long),
    ],
    indirect=["runner"],
)
def test_output_is_that_of_plain_decoding(tmp_path: Path, family: str, kind: str, runner: str):
    model = make_tiny_model(tmp_path / family, family)
    reference = Reference(model)
    expected = [reference.greedy(prompt, TOKENS) for prompt in PROMPTS]
    head = model / "ppsd"
    if kind == "steps":
        init_head(str(model), tmp_path / "one", exit_layer=3, head_type="transformer")
        texts = [[*prompt, *text] for prompt, text in zip(PROMPTS, expected, strict=True)]
        with_steps(tmp_path / "one", head, 2, texts, model)
    else:
        init_head(str(model), head, exit_layer=3, head_type=kind)
    # 8 blocks hold about half of what the five requests need at once.
    options = {
        "dtype": "float32",
        "max_model_len": 160,
        "block_size": 32,
        "num_gpu_blocks_override": 8,
    }
    drafting = {"num_speculative_tokens": DRAFTS, "draft_threshold": 0.0}
    with e.engine(model, stages=1, ppsd=drafting, **options) as llm:
        sampling = e.params(TOKENS)
        alone = [e.generate(llm, prompt, sampling).tokens for prompt in PROMPTS]
        together = e.generate_staggered(llm, PROMPTS, sampling, every=2)
        assert e.preemptions(llm) > 0
        e.assert_drafted(llm)
        if family == "llama":
            check_distribution(llm, reference, PROMPTS[0])
            check_aborts(llm, expected)
    assert alone == expected
    assert [output.tokens for output in together] == expected


def check_aborts(llm, expected: list[list[int]]) -> None:
    """Requests that are aborted amid their drafts leave the others alone."""
    core = llm.llm_engine
    for number, prompt in enumerate(PROMPTS):
        core.add_request(f"a{number}", {"prompt_token_ids": prompt}, e.params(TOKENS))
    tokens: dict[str, list[int]] = {}
    for step in range(10_000):
        if step == 4:
            core.abort_request(["a1", "a3"])
        for output in core.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        if not core.has_unfinished_requests():
            break
    for number in (0, 2, 4):
        assert tokens[f"a{number}"] == expected[number]
