"""The zoo's check of a surgery, its records, and its table."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.architectures import surgery_check, zoo
from ehap_tf.benchmark.architectures.zoo_table import table
from ehap_tf.benchmark.measuring.isolation import MeasurementError

layers = tf_keras.layers


def small(family: str, activation: str | None) -> tf_keras.Model:
    assert family == "MobileNet" and activation is None
    x = inputs = layers.Input((8, 8, 3))
    for name in ("a", "b", "c"):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(inputs, layers.Dense(10, name="end")(x))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the child's work here, on a small network; returns what was operated on."""
    operated: list[str] = []
    checked = surgery_check.checked

    def watched(family: str, model: Any, residual: str, ratio: float) -> Any:
        if len(operated) == 3:
            operated.append("killed")
            raise MeasurementError("killed")
        operated.append(f"{family} {residual} {ratio}")
        return checked(family, model, residual, ratio)

    monkeypatch.setattr(zoo, "build_family", small)
    monkeypatch.setattr(zoo, "checked", watched)
    monkeypatch.setattr(zoo, "measure", lambda _, arguments, __: zoo.operate_family(**arguments))
    return operated


def test_a_killed_run_goes_on_and_says_what_failed(
    tmp_path: pathlib.Path, in_this_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["zoo", "--families=MobileNet", f"--output={tmp_path / 'zoo.json'}"]
    assert main(arguments) == 1
    assert "MobileNet: killed" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "zoo.json").read_text())["rows"]) == 3
    assert main(arguments) == 0
    assert in_this_process == [
        "MobileNet union 0.3", "MobileNet union 0.6", "MobileNet tied 0.3", "killed",
        "MobileNet tied 0.6",
    ]  # fmt: skip
    rows = json.loads((tmp_path / "zoo.json").read_text())["rows"]
    assert [row["filters"] for row in rows] == [34] * 4
    assert all(row["error"] < 1e-4 and row["spread"] > 0.01 for row in rows)
    assert all(row["frozen"] == {"end": [10, "model output"]} for row in rows)
    assert rows[1]["params_after"] < rows[0]["params_after"] < rows[0]["params_before"]
    text = (tmp_path / "zoo.md").read_text()
    assert text == table(rows)
    assert "| MobileNet (MobileNet) | 34 | 70.6 |" in text
    assert "10: model output |" in text


def test_a_network_whose_outputs_say_nothing_proves_nothing() -> None:
    model = surgery_check.enliven(small("MobileNet", None))
    model.get_layer("b_norm").gamma.assign(np.zeros(8))
    with pytest.raises(ValueError, match="proves nothing"):
        surgery_check.checked("MobileNet", model, "union", 0.3)


def test_a_wrong_surgery_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    prune = surgery_check.prune

    def wrong(*arguments: Any) -> tf_keras.Model:
        slim = prune(*arguments)
        kernel = slim.get_layer("b").kernel
        kernel.assign(np.roll(kernel.numpy(), 1, axis=-1))
        return slim

    monkeypatch.setattr(surgery_check, "prune", wrong)
    with pytest.raises(ValueError, match="went wrong"):
        surgery_check.checked(
            "MobileNet", surgery_check.enliven(small("MobileNet", None)), "tied", 0.3
        )


def test_reasons_that_differ_by_a_name_only_are_one() -> None:
    row = {
        "family": "F", "model": "M", "residual": "union", "prune_ratio": 0.3, "filters": 2000,
        "prunable": 0.5, "params_before": 2_000_000, "params_after": 1_000_000,
        "macs_before": 3e6, "macs_after": 1.5e6, "error": 2e-7, "target_seconds": 0.1,
        "surgery_seconds": 2.0,
        "frozen": {
            "a": [600, "'n1' takes means"], "b": [390, "'n2' takes means"],
            "end": [10, "model output"],
        },
    }  # fmt: skip
    other = row | {"residual": "tied", "surgery_seconds": 3.0}
    assert table([row, other]).splitlines()[-1] == (
        "| F (M) | 2,000 | 50.0 | 2.00 | 1.00 | 1.00 | 3.00 | 1.50 | 1.50 | 2e-07 | 0.1 | 3.0 | "
        "990: `n1` takes means (and 1 like it); 10: model output |"
    )
