"""Probabilistic drafts: vLLM's rejection sampler turns them into the target's distribution."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.platforms import current_platform

from vllm_ppsd.single.chances import Chances

VOCABULARY, DRAFTED = 6, torch.tensor([0, 2, 3, 5])
HEAD = torch.tensor([1.0, 0.0, -1.0, 0.5])
TARGET = torch.tensor([0.2, 1.0, -0.5, 0.0, -2.0, 1.2])
ROWS = 4000
CRITICAL = 20.52
"""Of chi-square with five degrees of freedom, at p = 0.001."""


def request(**options) -> SimpleNamespace:
    return SimpleNamespace(sampling_params=SamplingParams(**options))


def drawn(rows: int, seed: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
    chances = Chances(DRAFTED, VOCABULARY, drafts=2, seed=seed)
    chances.begin(rows)
    drafts = chances.draw(
        range(rows),
        [request(**options)] * rows,
        range(rows),
        torch.zeros(rows, dtype=torch.int64),
        HEAD.expand(rows, -1),
        depth=0,
    )
    return drafts, chances.taken()


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


def test_greedy_requests_keep_the_most_probable_draft():
    drafts, probabilities = drawn(5, temperature=0.0)
    assert not drafts.any()
    assert probabilities is None


def test_without_a_seed_drafts_depend_on_the_engines():
    first, again, other = (drawn(50, seed=engine)[0] for engine in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_own_seeds_count_more_than_the_engines():
    chances = [Chances(DRAFTED, VOCABULARY, 1, engine) for engine in (1, 2)]
    found = []
    for one in chances:
        one.begin(40)
        arguments = range(40), [request(seed=9)] * 40, range(40)
        found.append(one.draw(*arguments, torch.zeros(40).long(), HEAD.expand(40, -1), depth=0))
    assert torch.equal(*found)
