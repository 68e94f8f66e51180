"""The simulated way back of deeper states: when stage 0 may draft with a multi-depth head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from vllm_ppsd.planning.times import Profile
from vllm_ppsd.protocol import DiagonalBook, Lane


class WayBack:
    """Holds a draft until the states that its lanes read are in, by the engine's own book.

    Args:
        profile: its head says which stages are read; states travel as long as a verdict does.
            None where nothing is drafted.
        partition: decoder layers per stage.
        after: calls an action after a delay in ms.
    """

    def __init__(
        self,
        profile: Profile | None,
        partition: Sequence[int],
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        deeper = profile.head.deeper_layers if profile and profile.head else []
        self._stages = [s for s, end in enumerate(accumulate(partition)) if end in deeper]
        self._book: DiagonalBook[bool] = DiagonalBook(self._stages or [1])
        self._delay, self._after = profile.verdict if profile else 0.0, after
        self._held: tuple[list[Lane], Callable[[], None]] | None = None

    def enter(self, lanes: Sequence[Lane]) -> None:
        """A tick with these lanes starts on stage 0."""
        if self._stages:
            self._book.enter(lanes)

    def layers_done(self, stage: int, lanes: Sequence[Lane], skipped: bool) -> None:
        """A stage's layers are done with a tick of these lanes, or it skipped the tick."""
        if stage in self._stages:
            states = None if skipped else [True] * len(lanes)
            source, tick = self._stages.index(stage), lanes[0].tick
            self._after(self._delay, lambda: self._arrive(source, tick, states))

    def hold(self, lanes: Sequence[Lane], draft: Callable[[], None]) -> None:
        """Call ``draft`` as soon as what these lanes read is in."""
        self._held = list(lanes), draft
        self._release()

    def _arrive(self, source: int, tick: int, states: list[bool] | None) -> None:
        self._book.arrive(source, tick, states)
        self._release()

    def _release(self) -> None:
        if self._held is None:
            return
        lanes, draft = self._held
        if not any(self._book.owed(source, lanes) for source in range(len(self._stages))):
            self._held = None
            draft()
