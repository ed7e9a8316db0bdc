"""What repair takes: one setting is changed at a time, and what is measured stays."""

from __future__ import annotations

import json
import pathlib

import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from tests.pruning.nets import shake

layers = tf_keras.layers
pytestmark = pytest.mark.usefixtures("eagerly")


def test_each_row_is_measured_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "settings.json"
    inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(inputs)
    x = layers.Conv2D(8, 3, activation="relu")(layers.BatchNormalization()(x))
    model = tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    shake(model).save(tmp_path / "model.keras")
    arguments = [
        "repair_settings", f"--model={tmp_path}/model.keras", "--examples=32", "--probes=2",
        "--criterion=magnitude", "--target_macs=0.4", "--images", "64", "16", "--ridges", "1",
        "--positions", "500", "--validation_images=100", f"--output={path}",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows)[:3] == ["whole", "pruned", "BatchNorm re-estimated"]
    assert rows["whole"]["divergence"] < 1e-9
    repaired = {name: row["divergence"] for name, row in rows.items() if "images" in name}
    assert len(set(repaired.values())) == len(repaired) == 6
    assert max(repaired["64 images"], repaired["16 images"]) < rows["pruned"]["divergence"]
    assert main(arguments) == 0
    assert {row["what"]: row for row in json.loads(path.read_text())["rows"]} == rows


def test_no_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair_settings", "--model=resnet8", "--images", "0"]) == 1
    assert "--images must be at least 1. Received: 0" in capsys.readouterr().err
