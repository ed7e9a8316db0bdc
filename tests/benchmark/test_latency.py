"""The latency table: every file timed, ratios against the dense float32 file."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import tf_keras

from ehap_tf.benchmark import latency

layers = tf_keras.layers


def residual_net() -> tf_keras.Model:
    inputs = layers.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    return tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def test_every_file_is_timed_and_its_fastest_round_compared(monkeypatch: pytest.MonkeyPatch):
    # Processes of their own are tested in test_isolation, the timing itself with the interpreter.
    timed: list[str] = []

    def scripted(function: str, arguments: dict[str, Any], timeout: float) -> float:
        assert function.endswith(":measure_latency_ms") and pathlib.Path(arguments["path"]).exists()
        timed.append(pathlib.Path(arguments["path"]).stem)
        return (8.0, 2.0, 4.0, 1.0, 6.0, 3.0, 4.5, 0.5)[len(timed) - 1]

    monkeypatch.setattr(latency, "measure", scripted)
    rows = latency.latency_table(residual_net(), residuals=("tied",), threads=(1,), rounds=2)
    names = ["float32 dense", "int8 dense", "float32 slim tied", "int8 slim tied"]
    assert [row.name for row in rows] == names
    assert timed == 2 * [name.replace(" ", "_") for name in names]
    assert [row.milliseconds for row in rows] == [6.0, 2.0, 4.0, 0.5]
    assert [row.speedup for row in rows] == [1.0, 3.0, 1.5, 12.0]
    assert rows[2].macs == rows[3].macs < 0.7 * rows[0].macs
    assert rows[1].bytes < rows[0].bytes
    assert len(latency.bars(rows).axes[0].patches) == 4
