"""Acceptance by step is counted chain by chain."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.training.by_step import BEST, StepCounts


def best(*tokens: int) -> torch.Tensor:
    """Return the head's best tokens of each chain; all but the first are wrong."""
    wrong = torch.full((len(tokens), max(BEST) - 1), -1)
    return torch.cat([torch.tensor(tokens)[:, None], wrong], dim=1)


def test_what_is_drafted_again_counts_up_to_the_first_miss():
    counts = StepCounts()
    counts.begin(4, torch.device("cpu"))
    text = torch.tensor([1, 1, 1, 1])
    # Two right drafts, one of which is kept; two wrong ones, one of which is mended.
    counts.judge(1, best(1, 1, 2, 2), text, torch.tensor([1, 3, 1, 2]))
    # Only the first two chains are still right.
    counts.judge(2, best(1, 2, 1, 1), text, torch.tensor([1, 1, 1, 1]))
    first, second = counts.steps()
    assert (first.acceptance, first.kept, first.mended) == (0.5, 0.5, 0.5)
    assert (second.given, second.joint) == (0.5, 0.25)
    assert (second.kept, second.mended) == (1.0, 1.0)


def test_without_a_second_draft_nothing_is_kept_or_mended():
    counts = StepCounts()
    counts.begin(2, torch.device("cpu"))
    counts.judge(1, best(1, 2), torch.tensor([1, 1]))
    (step,) = counts.steps()
    assert (step.kept, step.mended) == (0.0, 0.0)
    assert step.among == {k: pytest.approx(0.5) for k in BEST}
