"""report.json, and the content of the page, of a run."""

from __future__ import annotations

import json

import pytest
import tf_keras

from ehap_tf.pipeline import runner
from ehap_tf.pipeline.config import PipelineConfig
from ehap_tf.pipeline.contents import run_content
from ehap_tf.pipeline.run_directory import RunDirectory
from ehap_tf.report import summary_rows
from tests.pruning.nets import shake

layers = tf_keras.layers


@pytest.mark.parametrize("batches", [0, 1])
def test_accuracy_before_recalibration_is_told_where_there_was_one(tmp_path, batches):
    x = inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=4, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, x)).save(tmp_path / "small.keras")
    config = PipelineConfig(
        model=str(tmp_path / "small.keras"),
        dataset="digits",
        criterion="magnitude",
        batch_size=512,
        target_macs=0.5,
        recalibrate_batches=batches,
        precision="fp32",
        train_precision="fp32",
        stages=("train", "rank", "prune", "report"),
        output_dir=str(tmp_path / "run"),
        verbosity=0,
    )
    figures = runner.run(config)["prune"].figures
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    key = "accuracy_before_recalibration"
    assert report.get(key) == figures.get(key) and (key in report) is bool(batches)
    rows = summary_rows(run_content(RunDirectory(tmp_path / "run")))
    names = ["baseline", "pruned, not yet recalibrated", "pruned"]
    assert [row.name for row in rows] == (names if batches else [names[0], names[2]])
    page = (tmp_path / "run" / "report.html").read_text()
    assert (names[1] in page) is bool(batches)
