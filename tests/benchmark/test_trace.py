"""Time and memory of estimates: every case is measured, and its growth is told."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import pytest

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.measuring.isolation import MeasurementError
from ehap_tf.benchmark.ranking import trace
from ehap_tf.pruning import count_macs
from tests.sensitivity.networks import residual_net

MACS = {"small": 1_000_000, "middle": 2_000_000, "large": 4_000_000}


def test_every_case_is_measured_and_its_growth_printed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scripted(function: str, arguments: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        assert function == "ehap_tf.benchmark.ranking.trace:measure_trace" and timeout is None
        assert arguments["batch_size"] == 128 and arguments["probes"] == 16
        macs, sketch = MACS[arguments["model"]], arguments["estimator"] == "gauss_newton"
        seconds = 1e-7 * macs / 3 if sketch else 1e-8 * macs**1.1
        peak = 1000 + arguments["examples"] / 128
        return {
            "macs": macs,
            "seconds_per_probe": seconds,
            "peak_megabytes": peak,
            "added_megabytes": peak - 900,
        }

    monkeypatch.setattr(trace, "measure", scripted)
    out = tmp_path / "trace.json"
    flags = "--model=large,small,middle --examples=512,128 --precisions=fp32 --probes=16"
    assert main(["trace", *flags.split(), f"--output={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    cases = [(row["model"], row["examples"], row["case"]) for row in rows]
    assert len(set(cases)) == 12
    assert cases[:2] == [("large", 512, "hutchinson fp32"), ("large", 512, "gauss_newton fp32")]
    faster = 1e-8 * 4e6**1.1 / (1e-7 * 4e6 / 3)
    assert [row["speedup"] for row in rows[:2]] == [1.0, pytest.approx(faster)]
    assert out.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    lines = capsys.readouterr().out.splitlines()
    for line in (
        # 4^0.1 = 1.149
        "hutchinson fp32, 128 examples, small to large: seconds per probe ~ MACs^1.100; "
        "1.149 times as long per MAC",
        "gauss_newton fp32, 512 examples, small to large: seconds per probe ~ MACs^1.000; "
        "1.000 times as long per MAC",
        "hutchinson fp32, middle, by examples in the Hessian batch: peak 1001 MB with 128, "
        "1004 MB with 512",
    ):
        assert line in lines


def test_sixteen_bits_are_compared_with_float32(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {
        ("hutchinson", "fp32"): [1.0, 2.0, 3.0, 4.0],
        ("hutchinson", "bf16"): [1.1, 2.0, 5.0, 4.0],  # two neighbours change places
        ("gauss_newton", "fp32"): [4.0, 3.0, 2.0, 1.0],
        ("gauss_newton", "bf16"): [4.1, 2.9, 2.1, 1.0],
    }

    def scripted(function: str, arguments: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        del function, timeout
        key = (arguments["estimator"], arguments["precision"])
        times = {"seconds_per_probe": 1.0, "peak_megabytes": 2.0, "added_megabytes": 1.0}
        return times | {"scores": ranks[key]}

    monkeypatch.setattr(trace, "measure", scripted)
    out = tmp_path / "trace.json"
    assert main(["trace", "--precisions=bf16,fp32", f"--output={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row.get("spearman") for row in rows] == [pytest.approx(0.8), None, 1.0, None]
    assert not any("scores" in row for row in rows)


@pytest.mark.parametrize(("fastest", "cases"), [("fp32", ["fp32"]), ("bf16", ["fp32", "bf16"])])
def test_by_default_16_bits_are_measured_where_they_are_fast(
    monkeypatch: pytest.MonkeyPatch, fastest: str, cases: list[str]
) -> None:
    monkeypatch.setattr(trace, "resolve_precision", lambda precision: fastest)
    parser = argparse.ArgumentParser()
    trace.add_arguments(parser)
    options = parser.parse_args(["--estimators=gauss_newton,torch_loop"])
    expected = [("gauss_newton", precision) for precision in cases] + [("torch_loop", "fp32")]
    assert trace._cases(options) == expected


def test_where_every_case_fails_the_reason_is_told_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> None:
        raise MeasurementError("ValueError: dataset must be one of ...")

    monkeypatch.setattr(trace, "measure", fails)
    assert main(["trace", "--dataset=cifr10", f"--output={tmp_path / 'trace.json'}"]) == 1
    assert "error: nothing could be measured: ValueError: dataset" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_growth_needs_several_sizes() -> None:
    row = {"case": "a", "model": "net", "examples": 8, "macs": 5, "seconds_per_probe": 1.0}
    failed = row | {"model": "other", "examples": 9, "error": "none"}
    del failed["seconds_per_probe"]
    assert trace.time_growth([row, failed]) == trace.memory_growth([row, failed]) == []


def test_a_measurement(tmp_path: pathlib.Path) -> None:
    model = residual_net(dtype="float32")
    model.save(tmp_path / "net.keras")
    found = trace.measure_trace(
        "gauss_newton",
        "fp32",
        batch_size=4,
        probes=16,
        model=str(tmp_path / "net.keras"),
        dataset="noise",
        data_dir=None,
        examples=6,
        seed=0,
    )
    assert found["macs"] == count_macs(model)
    widths = [layer.filters for layer in model.layers if hasattr(layer, "filters")]
    assert len(found["scores"]) == sum(widths) + model.output_shape[-1]
    assert 0 < found["seconds_per_probe"] < found["first_seconds"] / 8  # it has the start-up
    assert found["total_seconds_per_probe"] * 16 > found["first_seconds"]
    assert found["peak_megabytes"] > max(100, found["added_megabytes"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--probes=12", "multiple of 8"), ("--examples=12,x", "invalid"), ("--probes=8", "16")],
)
def test_bad_flags(flag: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: Any = main(["trace", flag])
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
