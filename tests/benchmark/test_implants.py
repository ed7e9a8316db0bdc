from __future__ import annotations

import json
import pathlib

import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from tests.pruning.nets import shake

layers = tf_keras.layers


@pytest.mark.slow
def test_networks_of_the_same_size_are_compared_and_kept(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = inputs = layers.Input((32, 32, 3))
    for name in ("a", "b"):
        x = layers.Conv2D(16, 3, strides=4, padding="same", name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    outputs = layers.Dense(10, name="end")(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, outputs)).save(tmp_path / "net.keras")
    arguments = (
        f"implants --model={tmp_path / 'net.keras'} --dataset=digits --examples=16 --probes=2 "
        "--implant_ratio=0.5 --target_params 0.6 --round_to=2 "
        "--finetune_epochs=1 --finetune_images=256 "
        f"--output={tmp_path / 'table.json'}"
    ).split()
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["implants"] for row in rows] == ["none", "zero", "center"]
    assert rows[0]["implanted"] == 0 < rows[1]["implanted"] == rows[2]["implanted"]
    most = 0.6 * tf_keras.models.load_model(tmp_path / "net.keras").count_params()
    assert all(0.8 * most < row["params_left"] <= most for row in rows)
    assert not list(tmp_path.glob("table_records/*checkpoints*"))
    # What is measured is not measured again, and other settings do not mix with it.
    capsys.readouterr()
    (tmp_path / "table.json").unlink()
    assert main(arguments) == 0
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == rows
    assert main([*arguments, "--probes=3"]) == 1
    assert "other settings" in capsys.readouterr().err
