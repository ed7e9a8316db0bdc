"""Conversion of the families: a record a file, so that a kill or a failure loses no other."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import pytest

from ehap_tf.benchmark.integers import convert
from ehap_tf.benchmark.measuring.isolation import MeasurementError


def options(folder: pathlib.Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return parser.parse_args(["--families=VGG,ResNet", f"--output={folder / 'convert.json'}"])


class Converter:
    """Stands in for the process that converts; fails where it is told to."""

    def __init__(self, failing: tuple[str, float] | None, error: type[BaseException]) -> None:
        self.failing, self.error = failing, error
        self.converted: list[tuple[str, float]] = []

    def __call__(self, function: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert function == "ehap_tf.benchmark.integers.convert:convert_family"
        key = (arguments["family"], arguments["removed"])
        if key == self.failing:
            raise self.error("no such kernel")
        self.converted.append(key)
        row = convert.ConversionRow(*key, 10**6, 2000, 30, 1, [], 0.25, 4.0)
        return vars(row)


def test_a_kill_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    killed = Converter(("ResNet", 0.0), KeyboardInterrupt)
    monkeypatch.setattr(convert, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        convert.run(options(tmp_path))
    assert killed.converted == [("VGG", 0.0), ("VGG", 0.3)]

    second = Converter(None, MeasurementError)
    monkeypatch.setattr(convert, "measure", second)
    convert.run(options(tmp_path))
    assert second.converted == [("ResNet", 0.0), ("ResNet", 0.3)]
    assert len(json.loads((tmp_path / "convert.json").read_text())["rows"]) == 4
    lines = (tmp_path / "convert.md").read_text().splitlines()
    assert lines[0].startswith("| family | removed | MACs |")
    assert lines[5] == "| ResNet | 0.3 | 1000000 | 2000 | 30 | 1 | 0 | 0.25 | 4 |"


def test_a_failure_is_named_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setattr(convert, "measure", Converter(("VGG", 0.3), MeasurementError))
    with pytest.raises(ValueError, match=r"^VGG 0\.3: no such kernel$"):
        convert.run(options(tmp_path))
    assert len((tmp_path / "convert.md").read_text().splitlines()) == 2 + 3

    second = Converter(None, MeasurementError)
    monkeypatch.setattr(convert, "measure", second)
    convert.run(options(tmp_path))
    assert second.converted == [("VGG", 0.3)]
