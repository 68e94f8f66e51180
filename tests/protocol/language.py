"""A model of which every token depends on all tokens before it.

A context is a number made of its tokens, and a key/value entry is the context that it was made
in. So a stale entry is another number than the true one, and whatever reads it can be told.
"""

from __future__ import annotations

from collections.abc import Iterable

VOCABULARY = 50


def extend(context: int, token: int) -> int:
    """Return a context with one token more."""
    return (context * 1_000_003 + token + 1) & 0x1FFF_FFFF_FFFF_FFFF


def next_token(context: int) -> int:
    """Return the token that the model samples in a context."""
    return (context * 0x9E37_79B9_7F4A_7C15 >> 31) % VOCABULARY


def entries(before: list[int], tokens: Iterable[int]) -> list[int]:
    """Return the entries ``before``, and those of the tokens behind them."""
    path = list(before)
    context = path[-1] if path else 0
    for token in tokens:
        context = extend(context, token)
        path.append(context)
    return path


def oracle(prompt: list[int], length: int) -> list[int]:
    """Plain decoding."""
    context = entries([], prompt)[-1]
    output = []
    for _ in range(length):
        output.append(next_token(context))
        context = extend(context, output[-1])
    return output
