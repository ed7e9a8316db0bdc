"""Keeps what TensorFlow's C++ side writes out of the terminal."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def native_errors_in(file: IO[bytes]) -> Iterator[None]:
    """Sends what is written to file descriptor 2 inside the block to a file."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


@contextlib.contextmanager
def native_errors_kept() -> Iterator[None]:
    """Shows what is written to file descriptor 2 inside the block on an error only."""
    with tempfile.TemporaryFile() as kept:
        try:
            with native_errors_in(kept):
                yield
        except BaseException:
            kept.seek(0)
            os.write(2, kept.read())
            raise


class NativeErrorOutput:
    """Takes file descriptor 2 away from C++ code, while Python's `sys.stderr` stays where it was.

    Log levels do not do it: TensorFlow prints a dozen lines while it is imported, before it reads
    them, and more from the compiler and the converter later on.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # Never closed: a logging handler that is made meanwhile keeps it.
        self._stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Collects what is written to descriptor 2 inside the block."""
        python_stderr = sys.stderr
        with native_errors_in(self._file):
            try:
                sys.stderr = self._stderr
                yield
            finally:
                sys.stderr = python_stderr

    def to_file(self, path: pathlib.Path) -> None:
        """Sends the output to the end of `path` from now on, that collected so far included."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as log:
            self._file.seek(0)
            log.write(self._file.read())
            log.flush()
            os.dup2(log.fileno(), 2)
