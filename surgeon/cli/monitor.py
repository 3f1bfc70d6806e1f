"""Warnings and progress on a terminal: one progress display on stderr, only for what takes over a second."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

    from surgeon.passes import Advance

_PATIENCE_SECONDS = 1.0


class TerminalMonitor:
    """Shows warnings as lines and progress as bars; silent bars when stderr is not a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._timer = threading.Timer(_PATIENCE_SECONDS, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _start(self) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.start()

    def warn(self, text: str) -> None:
        """Shows one line."""
        line = f"surgeon: warning: {' '.join(text.split())}"
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")

    @contextlib.contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """Shows a bar, or a spinner where the total is not known."""
        progress = self._progress
        if progress is None:
            yield lambda _: None
            return
        task = progress.add_task(label, total=total)
        try:
            yield lambda steps: progress.advance(task, steps)
        finally:
            progress.remove_task(task)
