"""The latency table: every file timed, ratios against the dense float32 file."""

from __future__ import annotations

import pytest
import tf_keras

from ehap_tf.benchmark.latency import bars, latency_table

layers = tf_keras.layers


def residual_net() -> tf_keras.Model:
    inputs = layers.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    return tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.slow
def test_every_file_is_timed_and_compared():
    rows = latency_table(residual_net(), residuals=("tied",), threads=(1,), runs=5, rounds=2)
    assert [row.name for row in rows] == [
        "float32 dense",
        "int8 dense",
        "float32 slim tied",
        "int8 slim tied",
    ]
    assert rows[0].speedup == 1.0
    for row in rows:
        assert row.speedup == pytest.approx(rows[0].milliseconds / row.milliseconds)
        assert row.milliseconds > 0
    assert rows[2].macs == rows[3].macs < 0.7 * rows[0].macs
    assert rows[1].bytes < rows[0].bytes
    assert len(bars(rows).axes[0].patches) == 4
