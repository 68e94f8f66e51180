"""Probabilistic drafts: vLLM's rejection sampler turns them into the target's distribution."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.platforms import current_platform

from vllm_ppsd.drafter.interface import Wanted
from vllm_ppsd.single.draft_probabilities import DraftProbabilities

VOCABULARY, DRAFTED = 6, torch.tensor([0, 2, 3, 5])
HEAD = torch.tensor([1.0, 0.0, -1.0, 0.5])
TARGET = torch.tensor([0.2, 1.0, -0.5, 0.0, -2.0, 1.2])
ROWS = 4000
CRITICAL = 20.52
"""Of chi-square with five degrees of freedom, at p = 0.001."""


def drawn(
    rows: int, seed: int = 0, seed_of_request: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    probabilities = DraftProbabilities(VOCABULARY, drafts=2, seed=seed)
    probabilities.begin(rows)
    drafts = probabilities.draw(
        HEAD.expand(rows, -1),
        [SamplingParams(seed=seed_of_request)] * rows,
        [Wanted(row, f"r{row}", row) for row in range(rows)],
        DRAFTED,
    )
    return drafts, probabilities.result()


def test_drafts_have_the_heads_distribution():
    drafts, probabilities = drawn(ROWS)
    expected = torch.zeros(VOCABULARY)
    expected[DRAFTED] = HEAD.softmax(dim=0)
    assert probabilities is not None
    torch.testing.assert_close(probabilities[:, 0], expected.expand(ROWS, -1))
    assert not probabilities[:, 1].any()
    seen = drafts.bincount(minlength=VOCABULARY) / ROWS
    assert (seen - expected).abs().max() < 0.03


def test_the_output_has_the_targets_distribution():
    """Through vLLM's own rejection sampler, on this machine's device."""
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    from vllm.v1.sample.rejection_sampler import rejection_sample

    drafts, probabilities = drawn(ROWS)
    assert probabilities is not None
    torch.manual_seed(0)
    metadata = SimpleNamespace(
        all_greedy=False, all_random=True, temperature=torch.ones(ROWS), generators={}
    )
    output = rejection_sample(
        drafts,
        [1] * ROWS,
        1,
        torch.arange(1, ROWS + 1, dtype=torch.int32),
        probabilities[:, 0].contiguous(),
        TARGET.repeat(ROWS, 1),
        torch.zeros(ROWS, 1, dtype=torch.int32),
        metadata,
    )
    counts = output[:, 0].bincount(minlength=VOCABULARY)
    expected = TARGET.softmax(dim=0) * ROWS
    assert ((counts - expected) ** 2 / expected).sum().item() < CRITICAL
    kept = (output[:, 0] == drafts).float().mean().item()
    head = torch.zeros(VOCABULARY)
    head[DRAFTED] = HEAD.softmax(dim=0)
    assert kept == pytest.approx(torch.minimum(head, TARGET.softmax(dim=0)).sum().item(), abs=0.04)


def test_without_a_seed_drafts_depend_on_the_engines():
    first, again, other = (drawn(50, seed=engine)[0] for engine in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_own_seeds_count_more_than_the_engines():
    first, other = (drawn(40, seed=engine) for engine in (1, 2))
    assert not torch.equal(first[0], other[0])
    first, other = (drawn(40, seed=engine, seed_of_request=9) for engine in (1, 2))
    assert torch.equal(first[0], other[0])
