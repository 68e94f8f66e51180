"""The noise: a pure function, exponentially distributed, and sampling with it is right."""

from __future__ import annotations

import math

import pytest
import torch

from vllm_ppsd.sampling.noise import choose, exponential_noise, mix, state

DRAWS = 20_000


def noise(seed: int, positions: range, tokens: int) -> torch.Tensor:
    states = torch.tensor([state(seed, position) for position in positions])
    return exponential_noise(states, torch.arange(tokens))


def test_splitmix64_reference_values():
    """The generator's first outputs for seed 1234567, as its reference code prints them."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [mix(1234567 + (i + 1) * gamma) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_tensor_version_computes_the_same():
    start, gamma = state(5, 17), 0x9E3779B97F4A7C15
    found = exponential_noise(torch.tensor([start]), torch.tensor([0, 1, 49_151]))[0]
    for token, value in zip((0, 1, 49_151), found.tolist(), strict=True):
        uniform = (mix(start + (token + 1) * gamma) >> 11) * 2.0**-53
        assert value == pytest.approx(-math.log1p(-uniform), rel=1e-5)


def test_some_tokens_have_the_noise_they_have_among_all():
    states = torch.tensor([state(1, 2), state(3, 4)])
    some = torch.tensor([7, 99, 4000])
    assert torch.equal(
        exponential_noise(states, some), exponential_noise(states, torch.arange(5000))[:, some]
    )


def test_exponential_positive_and_finite():
    found = noise(0, range(200), 1000).flatten()
    assert found.min() > 0
    assert torch.isfinite(found).all()
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found.var().item() == pytest.approx(1, abs=0.02)
    for at in (0.1, 1.0, 3.0):
        assert (found < at).float().mean().item() == pytest.approx(1 - math.exp(-at), abs=0.004)


def test_seeds_and_positions_are_independent():
    first, other_seed = noise(1, range(50), 2000), noise(2, range(50), 2000)
    for pair in ((first, other_seed), (first[:-1], first[1:]), (first[:, 1:], first[:, :-1])):
        correlation = torch.corrcoef(torch.stack([half.flatten() for half in pair]))[0, 1]
        assert abs(correlation.item()) < 0.015


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**64 - 1, -(2**63)])
def test_any_64_bit_seed_does(seed: int):
    assert torch.isfinite(noise(seed, range(2), 10)).all()


@pytest.mark.parametrize("logits", [[0.0, 1.0, -1.0, 2.0], [3.0, -torch.inf, 0.0, 0.5]])
def test_sampling_has_the_right_distribution(logits: list[float]):
    """Chi-square against softmax; the critical value is that of p = 0.001."""
    many = torch.tensor(logits).expand(DRAWS, -1)
    counts = choose(many, noise(7, range(DRAWS), 4)).bincount(minlength=4)
    expected = torch.tensor(logits).softmax(dim=0) * DRAWS
    possible = expected > 0
    assert not counts[~possible].any()
    distance = ((counts - expected) ** 2 / expected)[possible].sum().item()
    assert distance < {4: 16.27, 3: 13.82}[int(possible.sum())]


def test_the_only_token_left_is_taken():
    logits = torch.full((500, 50), -torch.inf)
    logits[:, 13] = 0.0
    assert (choose(logits, noise(3, range(500), 50)) == 13).all()
