"""Each measurement in a process of its own, so that none inherits another's memory or caches."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any


class MeasurementError(Exception):
    """A measurement failed; the message is the last line of what its process said."""


def measure(function: str, arguments: Mapping[str, Any], timeout: float | None = None) -> Any:
    """Calls a function in a fresh Python process.

    Args:
        function: "package.module:name".
        arguments: keyword arguments, as JSON can hold them.
        timeout: seconds, or None.

    Returns:
        What the function returned, through JSON.

    Raises:
        MeasurementError: the process failed or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        # In a file: a command line has room for the scores of small networks only.
        given = pathlib.Path(folder) / "arguments.json"
        given.write_text(json.dumps(arguments), encoding="utf-8")
        result = pathlib.Path(folder) / "result.json"
        command = [sys.executable, "-m", __name__, function, str(given), str(result)]
        try:
            done = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"took longer than {timeout:.0f} seconds") from None
        if done.returncode != 0 or not result.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
            raise MeasurementError(reason)
        return json.loads(result.read_text(encoding="utf-8"))


def _main(function: str, arguments: str, result: str) -> None:
    module, _, name = function.partition(":")
    given = json.loads(pathlib.Path(arguments).read_text(encoding="utf-8"))
    value = getattr(importlib.import_module(module), name)(**given)
    pathlib.Path(result).write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
