"""Kernels rounded each way: the figures, and that what is measured stays."""

from __future__ import annotations

import json
import pathlib

import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from tests.pruning.nets import shake

layers = tf_keras.layers
pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture
def command(tmp_path: pathlib.Path) -> list[str]:
    """Of the benchmark, on a small network that is made for it."""
    inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(inputs)
    x = layers.Conv2D(8, 3, activation="relu")(layers.BatchNormalization()(x))
    model = tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    shake(model).save(tmp_path / "model.keras")
    return [
        "rounding", f"--model={tmp_path}/model.keras", "--examples=64", "--test_images=100",
        f"--output={tmp_path}/rounding.json",
    ]  # fmt: skip


def test_training_is_measured_beside_it(command: list[str], tmp_path: pathlib.Path) -> None:
    arguments = [*command, "--bits", "8", "--shares", "--train_steps=2", "--learning_rate=0.05"]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "rounding.json").read_text())["rows"]
    rows = {row["what"]: row for row in found}
    assert list(rows) == ["float", "8 bits, nearest", "8 bits, gptq", "8 bits, nearest, trained"]
    trained = rows["8 bits, nearest, trained"]
    assert trained["bytes"] == rows["8 bits, nearest"]["bytes"]
    assert trained["divergence"] > 2.0 * rows["8 bits, nearest"]["divergence"]


def test_each_row_is_measured_once(command: list[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rounding.json"
    arguments = [*command, "--shares", "0.95"]
    assert main(arguments) == 0
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    ways = [f"{bits} bits, {way}" for bits in (8, 4) for way in ("nearest", "gptq")]
    mixed = ["95 % of the bytes", "95 %, by the rounding error alone"]
    assert list(rows) == ["float", *ways, *mixed]
    bytes_of = {name: row["bytes"] for name, row in rows.items()}
    assert bytes_of["float"] is None
    for name in mixed:
        assert bytes_of["4 bits, gptq"] < bytes_of[name] <= 0.97 * bytes_of["8 bits, nearest"]
    assert rows["float"]["divergence"] < 1e-9 and rows["float"]["ratio_db"] is None
    assert rows["4 bits, gptq"]["ratio_db"] > rows["4 bits, nearest"]["ratio_db"]
    assert rows["8 bits, nearest"]["ratio_db"] > rows["4 bits, gptq"]["ratio_db"]
    assert main(arguments) == 0
    assert {row["what"]: row for row in json.loads(path.read_text())["rows"]} == rows
