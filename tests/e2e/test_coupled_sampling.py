"""Sampled requests: drafts drawn with the last stage's noise, or the stock sampler's luck."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import engine as e
from support.runners import V2_IN_LONG_RUNS

pytestmark = [pytest.mark.e2e, pytest.mark.long, *V2_IN_LONG_RUNS]

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
SEEDED = [
    e.params(48, temperature=1.0, seed=7),
    e.params(48, temperature=1.2, seed=5, top_p=0.9, top_k=50, min_p=0.02),
]
# vLLM's sampler draws for requests without a seed from one generator, for stale lanes too.
SAMPLINGS = {"coupled": [*SEEDED, e.params(48, temperature=0.6)], "greedy": SEEDED}


def run(llm, how: str) -> list[e.Output]:
    return [e.generate(llm, prompt, one) for prompt in PROMPTS for one in SAMPLINGS[how]]


@pytest.fixture(scope="module")
def acceptances() -> dict[str, float]:
    return {}


@pytest.mark.parametrize("how", ["coupled", "greedy"])
def test_same_seed_same_text_with_drafts_or_without(
    how: str, tiny_llama: Path, acceptances: dict[str, float]
):
    with e.engine(tiny_llama, ppsd={"draft_sampling": how} | e.PLAIN) as plain:
        expected = run(plain, how)
    with e.engine(tiny_llama, ppsd={"draft_sampling": how}) as llm:
        assert run(llm, how) == expected
        e.assert_drafted(llm)
        drafts, hits, _ = e.counts(llm)
        acceptances[how] = hits / drafts
        if how == "coupled":
            check_composition(llm, expected)


def check_composition(llm, expected: list[e.Output]) -> None:
    """A request with a seed gets the text it gets alone; the stock sampler promises that too."""
    together = e.generate_staggered(llm, PROMPTS, SEEDED[0], every=2)
    alone = expected[:: len(SAMPLINGS["coupled"])]
    ties = sum(e.tipped(a, b) for a, b in zip(alone, together, strict=True))
    assert ties < len(PROMPTS)


def test_coupled_drafts_are_right_more_often(acceptances: dict[str, float]):
    if len(acceptances) < 2:
        pytest.skip("both ways of drafting must have run")
    assert acceptances["coupled"] > 1.5 * acceptances["greedy"]
