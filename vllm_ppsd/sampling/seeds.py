"""Every request's seed: its own, or one that the engine's seed and its arrival decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from vllm_ppsd.sampling.noise import mix, signed, state


class Seeds(Protocol):
    """Knows every request's seed."""

    def seed(self, request_id: str) -> int:
        """Return the seed of a request, as a signed 64-bit number."""


class Arrivals:
    """The scheduler's: gives every request a seed.

    Args:
        engine_seed: vLLM's ``seed``. An engine that is given the same requests in the same
            order writes the same text again, as vLLM's does.
    """

    def __init__(self, engine_seed: int) -> None:
        self._engine_seed = engine_seed
        self._arrived = 0
        self._seeds: dict[str, int] = {}

    def add(self, request_id: str, own: int | None) -> None:
        """A request has arrived, with a seed of its ``own`` or without."""
        if own is None:
            own = mix(mix(self._engine_seed) + self._arrived)
            self._arrived += 1
        self._seeds[request_id] = own

    def of(self, request_ids: Iterable[str]) -> dict[str, int]:
        """Return the seeds of requests."""
        return {request_id: self._seeds[request_id] for request_id in request_ids}

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have left."""
        for request_id in request_ids:
            self._seeds.pop(request_id, None)


class SeedBook:
    """A stage's: the seeds that the scheduler has sent."""

    def __init__(self) -> None:
        self._seeds: dict[str, int] = {}

    def update(self, arrived: Mapping[str, int], left: Iterable[str]) -> None:
        """Take in a tick's news."""
        for request_id in left:
            self._seeds.pop(request_id, None)
        self._seeds |= arrived

    def seed(self, request_id: str) -> int:
        """Return the seed of a request, as a signed 64-bit number."""
        return signed(self._seeds[request_id])

    def state(self, request_id: str, position: int) -> int:
        """Return the noise generator's state for a token of a request."""
        return state(self._seeds[request_id], position)

    def __len__(self) -> int:
        return len(self._seeds)
