"""Sampled requests whose drafts the last stage accepts by rejection sampling."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import engine as e
from support.mixes import VOCABULARY, check, drive, random_mix, stay

pytestmark = pytest.mark.e2e

PROMPT = list(range(5, 25))
SEEDED = [
    e.params(32, temperature=0.8, seed=7),
    e.params(32, temperature=1.0, seed=5, top_p=0.9, top_k=50, min_p=0.02),
    e.params(32, temperature=0.6),
]
REQUESTS = 400
TOKENS = 3
CRITICAL = 27.88
"""Of chi-square with nine degrees of freedom, at p = 0.001."""


def last_tokens(llm, seeds: range) -> torch.Tensor:
    """Return how often each token was the last of a short answer."""
    asked = [e.params(TOKENS, temperature=1.0, top_k=4, seed=seed, logprobs=None) for seed in seeds]
    request = {"prompt_token_ids": PROMPT}
    outputs = llm.generate([request] * REQUESTS, asked, use_tqdm=False)
    last = torch.tensor([output.outputs[0].token_ids[-1] for output in outputs])
    return last.bincount(minlength=512)


def distance(first: torch.Tensor, second: torch.Tensor, cells: int) -> float:
    """Chi-square of two samples of one size, over the most frequent tokens and all others."""
    frequent = (first + second).topk(cells - 1).indices
    both = torch.stack(
        [torch.cat([c[frequent], (c.sum() - c[frequent].sum())[None]]) for c in (first, second)]
    )
    difference = (both[0] - both[1]).double() ** 2
    return (difference / both.sum(dim=0).clamp(min=1)).sum().item()


def test_same_seed_same_text_and_more_hits_and_the_targets_distribution(tiny_llama: Path):
    options = {"load_adaptive": False}
    found, written = {}, {}
    for number, how in enumerate(("coupled", "probabilistic")):
        with e.engine(tiny_llama, ppsd=options | {"draft_sampling": how}) as llm:
            first = [e.generate(llm, PROMPT, one) for one in SEEDED]
            # Whoever brings a seed gets that text again.
            assert [e.generate(llm, PROMPT, one) for one in SEEDED[:2]] == first[:2]
            written[how] = last_tokens(llm, range(number * REQUESTS, (number + 1) * REQUESTS))
            e.assert_drafted(llm)
            drafts, hits, _ = e.counts(llm)
            found[how] = hits / drafts
    assert found["probabilistic"] > found["coupled"]
    # Coupled sampling never looks at drafts.
    assert distance(*written.values(), cells=10) < CRITICAL


def test_greedy_requests_beside_sampled_ones_are_those_of_plain_decoding(tiny_llama: Path):
    rng = random.Random(0)
    heads = [rng.choices(VOCABULARY, k=length) for length in (40, 100, 160)]
    mixes = [stay(random_mix(seed, 20, heads)) for seed in range(2)]
    options: dict[str, Any] = {"dtype": "float32", "block_size": 32, "num_gpu_blocks_override": 9}
    options |= {"scheduling_policy": "priority"}
    greedy = [[one for one in mix if not one.sampling.temperature] for mix in mixes]
    with e.engine(tiny_llama, ppsd=e.PLAIN, **options) as plain:
        expected = [drive(plain, mix) for mix in mixes]
    ppsd = {"draft_sampling": "probabilistic", "load_adaptive": False}
    with e.engine(tiny_llama, ppsd=ppsd, **options) as llm:
        for mix, judged, wanted in zip(mixes, greedy, expected, strict=True):
            got = drive(llm, mix)
            check(judged, got, wanted)
            assert all(found.finished for found in got.values())
        e.assert_drafted(llm)
        assert e.preemptions(llm) > 0
