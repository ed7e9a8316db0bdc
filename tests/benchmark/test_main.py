"""What all benchmarks have in common: paths that are tried first, errors of one line."""

from __future__ import annotations

import argparse
import pathlib

import pytest

from ehap_tf.benchmark.__main__ import COMMANDS, main, module_of
from ehap_tf.benchmark.measuring.isolation import MeasurementError


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "study"])
def test_an_output_that_cannot_be_written_is_noticed_before_measuring(
    name: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(options: argparse.Namespace) -> None:
        raise AssertionError("measured before the path is tried")

    monkeypatch.setattr(module_of(name), "run", measured)
    (tmp_path / "file").write_text("in the way")
    assert main([name, f"--output={tmp_path / 'file' / 'table.json'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "path cannot be written" in line and "table.json" in line


@pytest.mark.parametrize("error", [FloatingPointError, MeasurementError])
def test_what_failed_is_told_in_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: argparse.Namespace) -> None:
        raise error("no such luck")

    monkeypatch.setattr("ehap_tf.benchmark.architectures.zoo.run", fails)
    assert main(["zoo"]) == 1
    assert capsys.readouterr().err == "error: no such luck\n"
