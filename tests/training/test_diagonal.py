"""The diagonal: which state of which earlier token a multi-depth head reads."""

from __future__ import annotations

import torch

from vllm_ppsd.training.diagonal import cached_layers, diagonal, disturbed, later

PROMPT_END, LENGTH = 2, 9


def depth(number: int) -> torch.Tensor:
    """States that say whose they are: 100 · depth + token, from the prompt's last token on."""
    tokens = torch.arange(PROMPT_END, LENGTH - 1)
    return (100 * number + tokens).float()[:, None]


def test_the_last_stage_needs_no_cache_of_its_own():
    assert cached_layers(8, [15, 22, 30]) == [8, 15, 22]
    assert cached_layers(18, []) == [18]


def test_each_stage_is_one_token_behind_the_one_before():
    found = diagonal([depth(2), depth(3), depth(4)], LENGTH, PROMPT_END).squeeze(-1)
    for token in range(LENGTH):
        expected = [
            100 * (place + 2) + token - place - 1 if token - place - 1 >= PROMPT_END else 0
            for place in range(3)
        ]
        assert found[token].tolist() == expected


def test_one_tick_late_is_one_token_further_behind():
    depths = [depth(2), depth(3)]
    late = diagonal(depths, LENGTH, PROMPT_END, delay=1)
    assert torch.equal(late, later(diagonal(depths, LENGTH, PROMPT_END), [LENGTH]))
    assert late.squeeze(-1)[5].tolist() == [203, 302]


def test_lateness_does_not_reach_into_the_document_before():
    one = diagonal([depth(2)], LENGTH, PROMPT_END)
    both = later(torch.cat([one, one]), [LENGTH, LENGTH])
    assert torch.equal(both, torch.cat([later(one, [LENGTH])] * 2))


def test_a_short_document_reads_nothing():
    assert not diagonal([depth(2)[:1]], PROMPT_END + 1, PROMPT_END).any()


def test_disturbed_by_chance():
    one = diagonal([depth(2)], LENGTH, PROMPT_END)
    many, lengths = one.repeat(200, 1, 1), [LENGTH] * 200
    assert disturbed(many, lengths, 0, 0, seed=1) is many
    found = disturbed(many, lengths, 0.25, 0.5, seed=1)
    assert torch.equal(found, disturbed(many, lengths, 0.25, 0.5, seed=1))
    by_document = found.view(200, LENGTH)
    absent = (by_document == 0).all(dim=1)
    assert 0.4 < absent.float().mean() < 0.6
    there = by_document[~absent][:, 5]
    assert set(there.tolist()) == {203, 204}
    assert 0.1 < (there == 203).float().mean() < 0.4
