"""Sampled requests: drafts drawn with the last stage's noise, or the stock sampler's luck."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e

pytestmark = pytest.mark.e2e

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
SAMPLINGS = [
    e.params(48, temperature=1.0, seed=7),
    e.params(48, temperature=0.6),
    e.params(48, temperature=1.2, seed=5, top_p=0.9, top_k=50, min_p=0.02),
]


def run(llm) -> list[e.Output]:
    return [e.generate(llm, prompt, how) for prompt in PROMPTS for how in SAMPLINGS]


@pytest.fixture(scope="module")
def acceptances() -> dict[str, float]:
    return {}


@pytest.mark.parametrize("how", ["greedy", "coupled"])
def test_same_seed_same_text_with_drafts_or_without(
    how: str, tiny_llama: Path, acceptances: dict[str, float]
):
    with e.engine(tiny_llama, ppsd={"draft_sampling": how} | e.PLAIN) as plain:
        expected = run(plain)
    with e.engine(tiny_llama, ppsd={"draft_sampling": how}) as llm:
        assert run(llm) == expected
        e.assert_drafted(llm)
        drafts, hits, _ = e.counts(llm)
        acceptances[how] = hits / drafts
        if how == "coupled":
            check_composition(llm, expected)


def check_composition(llm, expected: list[e.Output]) -> None:
    """A request with a seed gets the text it gets alone; the stock sampler promises that too."""
    together = e.generate_staggered(llm, PROMPTS, SAMPLINGS[0], every=2)
    alone = expected[:: len(SAMPLINGS)]
    ties = sum(e.tipped(a, b) for a, b in zip(alone, together, strict=True))
    assert ties < len(PROMPTS)


def test_coupled_drafts_are_right_more_often(acceptances: dict[str, float]):
    if len(acceptances) < 2:
        pytest.skip("both ways of drafting must have run")
    assert acceptances["coupled"] > 1.5 * acceptances["greedy"]
