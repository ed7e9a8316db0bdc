"""Processes in which nothing has run yet, without the ten seconds that TensorFlow's import takes.

One process per test worker imports what the package stands on, and never runs any of it nor
imports the package; every program gets a fork of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 1800
"""A program that takes longer dies by SIGALRM."""

# For every line of its input forks a child that waits for the program's own process, writes its
# exit code, and is not waited for: several programs can run at a time.
_DRIVER = f"""
import contextlib, json, os, signal, sys, traceback
import keras, matplotlib.pyplot, sklearn.datasets, tensorflow, tf_keras
import tensorflow_model_optimization

def run(request):
    signal.alarm({SECONDS})
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for number, name in enumerate(("stdout", "stderr"), 1):
        file = os.open(os.path.join(request["folder"], name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.path.insert(0, request["cwd"])
    sys.argv = ["-c", *request["arguments"]]
    try:
        exec(compile(request["program"], "<program>", "exec"), {{"__name__": "__main__"}})
        return 0
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if os.fork():
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        continue
    program = os.fork()
    if not program:
        os._exit(run(request))
    code = os.path.join(request["folder"], "code")
    for name, number in (("pid", program), ("code", None)):
        if number is None:
            number = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        with open(code + ".partial", "w") as file:
            file.write(str(number))
        os.replace(code + ".partial", os.path.join(request["folder"], name))
    os._exit(0)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
"""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that was started."""

    folder: pathlib.Path

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit code (minus the signal that killed it) and what it printed."""
        code = self._number("code")
        printed = [(self.folder / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess((), code, *printed)

    def kill(self) -> None:
        """Ends it if it still runs."""
        if not (self.folder / "code").exists():
            os.kill(self._number("pid"), 9)

    def _number(self, name: str) -> int:
        until = time.monotonic() + SECONDS + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < until, f"no {name} in {self.folder}"
            time.sleep(0.02)
        return int((self.folder / name).read_text())


class FreshProcesses:
    """Runs programs, each in a process of its own.

    Args:
        folder: for what they print.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        paths = dict.fromkeys([str(ROOT), *filter(None, sys.path)])
        self._driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            # The command sets these by itself, which is too late where TensorFlow is loaded.
            env={"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}
            | {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(
        self,
        program: str,
        *arguments: object,
        cwd: pathlib.Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Starts Python code; `arguments` are its `sys.argv[1:]`."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "environment": dict(environment or {}),
            "folder": str(folder),
        }
        assert self._driver.poll() is None and self._driver.stdin
        self._driver.stdin.write(json.dumps(request) + "\n")
        self._driver.stdin.flush()
        return Program(folder)

    def run(
        self, program: str, *arguments: object, cwd: pathlib.Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python code to its end, see `start`."""
        return self.start(program, *arguments, cwd=cwd).wait()

    def close(self) -> None:
        """Ends the process that is forked; it must be idle."""
        assert self._driver.stdin
        self._driver.stdin.close()
        self._driver.wait(timeout=60)
