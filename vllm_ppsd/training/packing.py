"""Documents into batches of a bounded number of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar


class HasLength(Protocol):
    """Anything with a length in tokens."""

    @property
    def length(self) -> int: ...


D = TypeVar("D", bound=HasLength)


def pack(
    documents: Sequence[D], batch_tokens: int, rng: random.Random | None = None
) -> Iterator[list[D]]:
    """Yield batches of documents of at most ``batch_tokens`` (or one document).

    Args:
        rng: shuffles the documents first; None keeps their order.
    """
    order = list(documents)
    if rng is not None:
        rng.shuffle(order)
    batch: list[D] = []
    total = 0
    for document in order:
        if batch and total + document.length > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(document)
        total += document.length
    if batch:
        yield batch
