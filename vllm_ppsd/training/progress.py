"""Progress bars, all of one make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class Bar:
    """One bar with a line of figures behind it."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=None, figures="")

    def track(self, items: Sequence[T]) -> Iterator[T]:
        """Yield ``items``, advancing after each."""
        self._progress.update(self._task, total=len(items))
        for item in items:
            yield item
            self._progress.advance(self._task)

    def to(self, completed: int, total: int, figures: str = "") -> None:
        """Show ``completed`` of ``total``, and ``figures``."""
        self._progress.update(self._task, completed=completed, total=total, figures=figures)


@contextmanager
def progress(description: str) -> Iterator[Bar]:
    """Show a bar with counts, elapsed and remaining time while the block runs."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ) as bars:
        yield Bar(bars, description)
