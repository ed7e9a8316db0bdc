"""What the user sees of a run: a progress bar in a terminal, timestamped lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import TextIO

import rich.console
import rich.markup
import rich.progress
import rich.table

from ehap_tf.progress import ProgressCallback, no_progress

LINE_INTERVAL = 10.0
"""Seconds between two progress lines where there is no terminal, and in the log file."""


TABLE_WIDTH = 110
"""Columns of a table where there is no terminal that says how many it has."""


class RunConsole:
    """Messages and progress of one run, on standard output and in `logs/run.log`.

    Args:
        verbosity: 0 prints only the final table, 1 progress as well, 2 details as well. The log
            file holds everything.
        console: where to print; a test gives its own.
    """

    def __init__(self, verbosity: int = 1, console: rich.console.Console | None = None) -> None:
        self.verbosity = verbosity
        self.console = console or _default_console()
        self._log: TextIO | None = None

    @contextlib.contextmanager
    def logging_to(self, path: pathlib.Path) -> Iterator[None]:
        """Appends everything to the log file `path` inside the block."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as self._log:
            try:
                yield
            except BaseException:
                self._write_log(traceback.format_exc())
                raise
            finally:
                self._log = None

    def say(self, text: str, level: int = 1) -> None:
        """Prints a message (at `level` 1 or above of verbosity) and logs it."""
        self._write_log(text)
        if self.verbosity < level:
            return
        if self.console.is_terminal:
            self.console.print(rich.markup.escape(text), soft_wrap=True)
        else:
            self.console.print(f"{_now()} {rich.markup.escape(text)}", soft_wrap=True)

    def table(self, table: rich.table.Table) -> None:
        """Prints a table at every verbosity, and logs it."""
        self.console.print(table)
        if self._log:
            rich.console.Console(file=self._log, width=TABLE_WIDTH).print(table)

    @contextlib.contextmanager
    def progress(self, title: str, unit: str) -> Iterator[ProgressCallback]:
        """A callback that shows how far an operation is, with its newest figures and an ETA."""
        lines = _ProgressLines(title, unit)

        def log_line(done: int, total: int, figures: Mapping[str, float]) -> None:
            line = lines.next(done, total, figures)
            if line:
                self._write_log(line)
                if self.verbosity and not self.console.is_terminal:
                    self.console.print(f"{_now()} {rich.markup.escape(line)}", soft_wrap=True)

        if not self.verbosity or not self.console.is_terminal:
            yield log_line if self.verbosity or self._log else no_progress
            return
        with rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=30),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn(unit),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
            rich.progress.TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
        ) as bar:
            task = bar.add_task(title, total=None, figures="")

            def show(done: int, total: int, figures: Mapping[str, float]) -> None:
                bar.update(task, completed=done, total=total, figures=_figures(figures))
                log_line(done, total, figures)

            yield show

    def _write_log(self, text: str) -> None:
        if self._log:
            self._log.write(f"{_now()} {text}\n")
            self._log.flush()


class _ProgressLines:
    """Decides when a progress line is due, and writes it."""

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit
        self._start = self._last_line = time.monotonic()
        self._first_done: int | None = None

    def next(self, done: int, total: int, figures: Mapping[str, float]) -> str | None:
        """The line for this state, or None when the last one is too fresh."""
        now = time.monotonic()
        if self._first_done is None:
            # A resumed stage starts above zero and the first step compiles: both mislead the ETA.
            self._first_done, self._start = done, now
        if now - self._last_line < LINE_INTERVAL and done < total:
            return None
        self._last_line = now
        line = f"{self._title}: {done}/{total} {self._unit}"
        progressed = done - self._first_done
        if progressed > 0 and done < total:
            remaining = (now - self._start) / progressed * (total - done)
            line += f", ETA {datetime.timedelta(seconds=round(remaining))}"
        text = _figures(figures)
        return f"{line}, {text}" if text else line


def _default_console() -> rich.console.Console:
    console = rich.console.Console(highlight=False)
    if not console.is_terminal:
        # Without a terminal rich assumes 80 columns and would cut the table.
        console.width = TABLE_WIDTH
    return console


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in figures.items()
        if name != "seconds"
    )


def _now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
