"""Progress on a terminal: a bar with the time that remains."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class ProgressBar:
    """A `fptq.types.Progress`: one bar for the work at hand, and one line in the end that says what took how long.

    Without a terminal there is only the line; without a console there is nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._seconds: dict[str, float] = {}
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._console is not None and self._console.is_terminal:
            self._bars = _bars(self._console)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is None and self._console is not None and self._seconds:
            parts = ", ".join(f"{what} {_duration(spent)}" for what, spent in self._seconds.items())
            whole = _duration(time.monotonic() - self._begin)
            self._console.print(f"finished in {whole} ({parts})", highlight=False, markup=False)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Draw how far the work is; work of another name replaces the bar."""
        now, name = time.monotonic(), what.partition(":")[0]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now
        if self._bars is None:
            return
        if self._task is None or name != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            # What was done before the bar began (an earlier run's samples) says nothing about the speed.
            self._task = self._bars.add_task(what, total=total or None, completed=done)
            self._what = name
        self._bars.update(self._task, completed=done, total=total or None, description=what)


def _bars(console: Console) -> Bars:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(3.14), _duration(75), _duration(7300)
    ('3.1 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
