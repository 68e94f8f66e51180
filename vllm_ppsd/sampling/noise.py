"""Noise that is a pure function of a request's seed, a position and a token.

A token is sampled by dividing every token's probability by exponential noise of its own
and taking the largest (the Gumbel-max trick). Whoever knows seed and position can make the
same noise, for as few tokens as are asked for: token ``t`` takes the ``t``-th output of a
SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014) whose state comes from both.
"""

from __future__ import annotations

import torch

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFT = (30, 27, 31)

_BITS = 53
_BELOW_ONE = 1 - 2**-24
"""The largest float32 below one: noise is finite, so that no token is ruled out by it."""


def mix(value: int) -> int:
    """Return SplitMix64's output function of ``value``, both in ``range(2**64)``."""
    value &= _MASK
    for shift, factor in zip(_SHIFT, (*_MULTIPLY, 1), strict=True):
        value = (value ^ (value >> shift)) * factor & _MASK
    return value


def state(seed: int, position: int) -> int:
    """Return the generator's state for a token, as a signed 64-bit number.

    Args:
        seed: of the request.
        position: of the sampled token in the sequence.
    """
    return signed(mix(mix(seed + _GAMMA) + position * _GAMMA))


def exponential_noise(states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return exponentially distributed noise of mean one.

    Args:
        states: int64 [rows], of ``state``.
        token_ids: int64 [tokens].

    Returns:
        float32 [rows, tokens], positive and finite.
    """
    bits = states[:, None] + (token_ids + 1) * signed(_GAMMA)
    for shift, factor in zip(_SHIFT[:2], _MULTIPLY, strict=True):
        bits = (bits ^ _shift_right(bits, shift)) * signed(factor)
    bits = bits ^ _shift_right(bits, _SHIFT[2])
    # Half a step off zero; the steps are finer than float32's at any size.
    uniform = (_shift_right(bits, 64 - _BITS).to(torch.float32) + 0.5) * 2.0**-_BITS
    return -torch.log1p(-uniform.clamp_(max=_BELOW_ONE))


def choose(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Sample from ``softmax(logits)``.

    Args:
        logits: float32 [rows, tokens]; minus infinity rules a token out.
        noise: float32 [rows, tokens], of ``exponential_noise``.

    Returns:
        int64 [rows].
    """
    return logits.softmax(dim=-1, dtype=torch.float32).div_(noise).argmax(dim=-1)


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift zeros in from the left; int64's own shift repeats the sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)


def signed(value: int) -> int:
    """Return the signed number of the same 64 bits."""
    return value - 2**64 if value >= 2**63 else value
