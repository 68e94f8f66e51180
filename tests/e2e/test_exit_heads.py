"""A lens head on Qwen2 with an untied LM head; test_training serves a transformer on Qwen3."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.runners import V2_IN_LONG_RUNS
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, *V2_IN_LONG_RUNS]

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 150))]


def test_output_is_bit_identical(tmp_path: Path):
    model = make_tiny_model(tmp_path / "qwen2", "qwen2", tied=False)
    init_head(str(model), model / "ppsd", exit_layer=4)
    sampling = e.params(48)
    with e.engine(model, ppsd=e.PLAIN) as plain:
        expected = [e.generate(plain, prompt, sampling) for prompt in PROMPTS]
    with e.engine(model, ppsd={}) as llm:
        assert [e.generate(llm, prompt, sampling) for prompt in PROMPTS] == expected
        e.assert_drafted(llm)
