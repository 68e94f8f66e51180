"""A quantised target: its head is made of floats, and served so."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.quantised import W8A8, quantise
from support.runners import V2_IN_LONG_RUNS
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import init_head

pytestmark = [pytest.mark.e2e, pytest.mark.long, *V2_IN_LONG_RUNS]

PROMPT, TOKENS = list(range(5, 45)), 40


def test_output_is_that_of_plain_decoding(tmp_path: Path):
    model = quantise(make_tiny_model(tmp_path / "llama"), tmp_path / "quantised", W8A8)
    init_head(str(model), model / "ppsd", exit_layer=4, head_type="transformer")
    with e.engine(model, ppsd=e.PLAIN) as plain:
        expected = e.generate(plain, PROMPT, e.params(TOKENS))
    with e.engine(model, ppsd={}) as llm:
        assert e.generate(llm, PROMPT, e.params(TOKENS)) == expected
        e.assert_drafted(llm)
