"""Progress bars, all of one make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

SECONDS_PER_LINE = 30
"""How often a log file, which shows no bar, gets a line instead."""


class Bar:
    """One bar with a line of figures behind it."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=None, figures="")
        self._lines_from = progress.get_time() + SECONDS_PER_LINE

    def track(self, items: Sequence[T]) -> Iterator[T]:
        """Yield ``items``, advancing after each."""
        for completed, item in enumerate(items):
            self.to(completed, len(items))
            yield item
        self.to(len(items), len(items))

    def to(self, completed: int, total: int, figures: str = "") -> None:
        """Show ``completed`` of ``total``, and ``figures``."""
        self._progress.update(self._task, completed=completed, total=total, figures=figures)
        now = self._progress.get_time()
        if not self._progress.console.is_terminal and now >= self._lines_from:
            task = self._progress.tasks[self._task]
            seconds = task.time_remaining
            left = "" if seconds is None else f", {timedelta(seconds=round(seconds))} left"
            self._progress.console.print(
                f"{task.description}: {completed} of {total}{left} {figures}".rstrip()
            )
            self._lines_from = now + SECONDS_PER_LINE


@contextmanager
def progress(description: str, console: Console | None = None) -> Iterator[Bar]:
    """Show a bar with counts, elapsed and remaining time while the block runs."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    ) as bars:
        yield Bar(bars, description)
