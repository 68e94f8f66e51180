"""One device on V2: text is what V2 writes without drafts, whatever the sampling parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.runners import V2
from support.variants import VARIANTS, run

pytestmark = [pytest.mark.e2e, *V2]


def test_text_is_that_of_v2_without_drafts(tiny_llama: Path):
    variants = list(VARIANTS)
    drafting = {"draft_threshold": 0.0}
    # In float32: a pass over several tokens rounds otherwise than one over each.
    with e.engine(tiny_llama, stages=1, ppsd=e.PLAIN, dtype="float32") as plain:
        expected = run(plain, variants)
    with e.engine(tiny_llama, stages=1, ppsd=drafting, dtype="float32") as llm:
        seen = run(llm, variants)
        e.assert_drafted(llm)
    for name in variants:
        for ours, theirs in zip(seen[name], expected[name], strict=True):
            assert ours.tokens == theirs.tokens, name
            for mine, others in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert mine == pytest.approx(others, abs=1e-4), name
