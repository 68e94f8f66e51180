"""Short ways to write lanes, ticks and candidates."""

from __future__ import annotations

from vllm_ppsd.protocol import Candidate, Draft, Lane, Outcome, Tick


def root(tick: int, position: int, length: int = 1, drafted: int = 0, request: str = "a") -> Lane:
    return Lane(request, tick, position, length, drafted, samples=drafted + 1)


def follower(
    tick: int, position: int, rank: int = 0, parent: int = 0, length: int = 1, request: str = "a"
) -> Lane:
    """A lane of drafts made in the tick before."""
    return Lane(request, tick, position, length, length, length, tick - 1, rank, parent)


def tick_of(*lanes: Lane, **fields) -> Tick:
    return Tick(lanes[0].tick, lanes, **fields)


def candidate(*tokens: int, parent: int = 0) -> Candidate:
    return Candidate(tuple(Draft(token) for token in tokens), parent)


def outcome(continues: int | None = 0, rank: int = 0, request: str = "a") -> Outcome:
    """Of a lane of one token, behind which something was drafted."""
    return Outcome(request, (7,), 1, int(continues is not None), continues, rank)
