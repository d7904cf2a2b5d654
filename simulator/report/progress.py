"""A progress bar with rate and time left, on a terminal, for what takes longer than two seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console

SHOW_AFTER_S = 2.0


@contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function of the number done so far. Draws nothing if *console* is not a terminal."""
    if not console.is_terminal:
        yield lambda _done: None
        return
    bar = _Bar(console, label, total)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    """Drawn once it has taken SHOW_AFTER_S: a short run stays quiet."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console, self._label, self._total = console, label, total
        self._started_s = monotonic()
        self._bar: _Rich | None = None

    def update(self, done: int) -> None:
        if self._bar is None:
            if monotonic() - self._started_s < SHOW_AFTER_S:
                return
            self._bar = _Rich(self._console, self._label, self._total)
        self._bar.update(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Rich:
    """The bar itself; rich's progress is imported only when one is drawn."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        from rich.progress import (  # noqa: PLC0415 - a short run does not pay for it
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text  # noqa: PLC0415 - the same

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed or 0:,.0f} requests/s")

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(label, total=total)
        self._progress.start()

    def update(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()
