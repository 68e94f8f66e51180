"""Every kind of head, on other architectures than Llama, tied and untied."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head

pytestmark = pytest.mark.e2e

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 150))]
CASES = {
    "qwen2, mlp, untied": ("qwen2", False, {"head_type": "mlp", "intermediate_size": 96}),
    "qwen3, transformer, cut vocabulary": (
        "qwen3",
        True,
        {
            "head_type": "transformer",
            "num_layers": 2,
            "draft_token_ids": list(range(511, 100, -1)),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_output_is_bit_identical(case: str, tmp_path: Path):
    family, tied, head = CASES[case]
    model = make_tiny_model(tmp_path / family, family, tied=tied)
    init_head(str(model), model / "ppsd", exit_layer=4, **head)
    sampling = e.params(48)
    with e.engine(model, ppsd=e.PLAIN) as plain:
        expected = [e.generate(plain, prompt, sampling) for prompt in PROMPTS]
    with e.engine(model, ppsd={}) as llm:
        assert [e.generate(llm, prompt, sampling) for prompt in PROMPTS] == expected
        e.assert_drafted(llm)
