"""Keeps what TensorFlow's C++ side writes out of the terminal."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator


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
        original, python_stderr = os.dup(2), sys.stderr
        try:
            python_stderr.flush()
            os.dup2(self._file.fileno(), 2)
            sys.stderr = self._stderr
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(original, 2)
            os.close(original)

    def to_file(self, path: pathlib.Path) -> None:
        """Sends the output to the end of `path` from now on, that collected so far included."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as log:
            self._file.seek(0)
            log.write(self._file.read())
            log.flush()
            os.dup2(log.fileno(), 2)
