"""A multi-depth head: states come back from later stages, and the output stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.heads import write_multi_depth
from support.runners import V2_IN_LONG_RUNS

pytestmark = [pytest.mark.e2e, *V2_IN_LONG_RUNS]

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
GREEDY = e.params(32)
SAMPLED = e.params(32, temperature=0.9, seed=7)


def outputs(llm) -> list[e.Output]:
    alone = [e.generate(llm, prompt, how) for prompt in PROMPTS for how in (GREEDY, SAMPLED)]
    return alone + e.generate_staggered(llm, PROMPTS, GREEDY, every=3)[:1]


@pytest.mark.parametrize("deeper_layers", [[6], pytest.param([5, 6], marks=pytest.mark.long)])
def test_output_is_bit_identical(tiny_llama: Path, tmp_path: Path, deeper_layers: list[int]):
    stages = len(deeper_layers) + 1
    head = write_multi_depth(tiny_llama, tmp_path / "head", deeper_layers)
    with e.engine(tiny_llama, stages=stages, ppsd={"model": head} | e.PLAIN) as plain:
        expected = outputs(plain)
    with e.engine(tiny_llama, stages=stages, ppsd={"model": head}) as llm:
        found = outputs(llm)
        e.assert_drafted(llm)
    assert found[:-1] == expected[:-1]
    assert found[-1].tokens == expected[-1].tokens or e.tipped(expected[-1], found[-1])
