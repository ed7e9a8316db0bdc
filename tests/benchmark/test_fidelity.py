"""Rank correlation with the exact trace: what is measured, kept, and said of the time."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

import pytest

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.ranking import fidelity
from tests.sensitivity.networks import residual_net


def test_the_command_compares_with_the_exact_trace_and_keeps_what_it_measured(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    residual_net(dtype="float32").save(tmp_path / "net.keras")
    measured: list[str] = []

    def here(function: str, arguments: dict[str, Any]) -> Any:
        module, _, name = function.partition(":")
        measured.append(f"{name} {arguments.get('estimator', arguments.get('kind'))}")
        found = getattr(importlib.import_module(module), name)(**arguments)
        return json.loads(json.dumps(found))

    monkeypatch.setattr(fidelity, "measure", here)  # fresh processes: test_isolation
    out = tmp_path / "fidelity.json"
    arguments = [
        "fidelity",
        f"--model={tmp_path / 'net.keras'}",
        "--dataset=noise",
        "--examples=12",
        "--cases=gauss_newton:fp32",
        f"--output={out}",
    ]
    assert main([*arguments, "--counts=1,300"]) == 0
    assert measured == ["reference_scores exact", "measure_fidelity gauss_newton"]
    rows = json.loads(out.read_text())["rows"]
    assert [row["probes"] for row in rows] == [0, 1, 300]
    assert rows[1]["spearman"] < 1 and rows[2]["spearman"] > 0.95 and rows[2]["negative"] == 0
    assert rows[2]["seconds"] > rows[1]["seconds"] > 0
    assert "gauss_newton fp32: Spearman" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes()[1:4] == b"PNG"

    assert main([*arguments, "--counts=1,300"]) == 0
    assert len(measured) == 2 and json.loads(out.read_text())["rows"] == rows
    assert main([*arguments, "--counts=1,2"]) == 0
    assert measured[2:] == ["measure_fidelity gauss_newton"]
    capsys.readouterr()
    assert main([*arguments, "--examples=13"]) == 1
    assert "examples: 12 -> 13" in capsys.readouterr().err


def test_times_are_compared_with_the_slowest_case() -> None:
    def points(case: str, *values: tuple[int, float, float]) -> list[dict[str, Any]]:
        keys = ("probes", "seconds", "spearman")
        return [{"case": case} | dict(zip(keys, value, strict=True)) for value in values]

    rows = [
        {"case": "reference exact", "probes": 0, "seconds": 50.0},
        *points("sketch", (1, 0.1, 0.86), (4, 0.4, 0.953), (16, 1.6, 0.94)),
        *points("probes", (1, 0.6, 0.1), (300, 200.0, 0.9)),
        {"case": "broken", "error": "none"},
    ]
    assert fidelity.time_to_reach(rows, 0.95) == [
        "sketch: Spearman 0.953 after 4 probes, 0.4 s, at least 500 times as fast as probes",
        "probes: Spearman 0.900, short of 0.95, after 300 probes, 200 s",
    ]
    assert fidelity.time_to_reach(rows, 0.85) == [
        "sketch: Spearman 0.860 after 1 probes, 0.1 s, 2e+03 times as fast as probes",
        "probes: Spearman 0.900 after 300 probes, 200 s",
    ]
    assert fidelity.time_to_reach(rows[:1], 0.95) == []
