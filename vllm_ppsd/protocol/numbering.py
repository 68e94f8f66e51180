"""The scheduler numbers ticks, and says behind which of them a lane's tokens were drafted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm_ppsd.protocol.tick import Lane, Tick


class TickBook:
    """The scheduler's: makes every tick."""

    def __init__(self) -> None:
        self._number = 0
        self._newest: dict[str, int] = {}

    def lane(self, request_id: str, position: int, length: int, known: int, samples: int) -> Lane:
        """Return a lane of the next tick.

        Args:
            request_id: the engine's id of the request.
            position: of the lane's first token.
            length: number of its tokens.
            known: how many of them, the first ones, the scheduler knows.
            samples: how many of its rows sample.

        Raises:
            KeyError: no token is known, and no lane of the request was sent before.
        """
        behind = None if known else self._newest[request_id]
        return Lane(request_id, self._number, position, length, length - known, samples, behind)

    def tick(
        self,
        lanes: Iterable[Lane],
        no_draft_req_ids: Iterable[str] = (),
        seeds: Mapping[str, int] | None = None,
        left: Iterable[str] = (),
    ) -> Tick:
        """Return the next tick; arguments as its attributes."""
        left = tuple(left)
        for request_id in left:
            self._newest.pop(request_id, None)
        tick = Tick(
            self._number, tuple(lanes), frozenset(no_draft_req_ids), dict(seeds or {}), left
        )
        for lane in tick.lanes:
            self._newest[lane.request_id] = tick.number
        self._number += 1
        return tick

    def __len__(self) -> int:
        return len(self._newest)
