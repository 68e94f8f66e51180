"""Noise for the target's draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from vllm_ppsd.exit_head.architectures import LogitsShape
from vllm_ppsd.training.draws import ROWS, Draws


def test_no_two_rows_share_noise_in_one_batch_or_in_several():
    target = SimpleNamespace(vocab_size=5)
    head: Any = SimpleNamespace(shape=LogitsShape(), config=SimpleNamespace(target=target))
    draws = Draws(head, torch.eye(6), temperature=0.5)
    final = torch.ones(ROWS + 3, 6)
    batches = [list(draws.of(final)) for _ in range(2)]
    assert [len(logits) for logits, _ in batches[0]] == [ROWS, 3]
    noise = torch.cat([noise for batch in batches for _, noise in batch])
    assert noise.shape == (2 * (ROWS + 3), 5)
    assert len(noise.unique(dim=0)) == len(noise)
    assert torch.equal(batches[0][0][0], torch.full((ROWS, 5), 2.0))
