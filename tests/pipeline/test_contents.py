"""report.json, and the content of the page, of a run."""

from __future__ import annotations

import json

import pytest
import tf_keras

from ehap_tf.pipeline.command import runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.report_content import OPTIONAL_KEYS, report_figures, run_content
from ehap_tf.pipeline.command.run_directory import RunDirectory
from ehap_tf.pipeline.command.stage_records import StageRecord
from ehap_tf.quantization import inspect_tflite
from ehap_tf.report import device_rows, summary_rows
from tests.pruning.nets import shake

layers = tf_keras.layers


@pytest.mark.parametrize(
    ("how", "key", "name"),
    [
        ({"repair_images": 0, "recalibrate_batches": 0}, None, None),
        (
            {"repair_images": 0, "recalibrate_batches": 1},
            "accuracy_before_recalibration",
            "pruned, not yet recalibrated",
        ),
        ({"repair_images": 50}, "accuracy_before_repair", "pruned, not yet repaired"),
    ],
)
def test_accuracy_right_after_surgery_is_told_where_something_followed(tmp_path, how, key, name):
    small_network(tmp_path / "small.keras")
    config = PipelineConfig(
        model=str(tmp_path / "small.keras"),
        dataset="digits",
        normalization="dataset",
        force=True,
        criterion="magnitude",
        batch_size=512,
        target_macs=0.5,
        **how,
        precision="fp32",
        train_precision="fp32",
        stages=("train", "rank", "prune", "report"),
        output_dir=str(tmp_path / "run"),
        verbosity=0,
    )
    figures = runner.run(config)["prune"].figures
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = [one for one in OPTIONAL_KEYS if one in report]
    assert found == [*([key] if key else []), "image_shape", "normalization"]
    assert key is None or report[key] == figures[key]
    assert report["normalization"] == "dataset" and report["image_shape"][2] == 3
    rows = summary_rows(run_content(RunDirectory(tmp_path / "run")))
    names = ["baseline", *([name] if name else []), "pruned"]
    assert [row.name for row in rows] == names
    page = (tmp_path / "run" / "report.html").read_text()
    assert [one in page for one in ("recalibrated", "repaired")] == [
        bool(name) and word in name for word in ("recalibrated", "repaired")
    ]
    if name != "pruned, not yet repaired":
        return
    # The same flags again: done before. A network pruned without repair stays so unless asked.
    again = runner.run(config)["prune"]
    assert again.figures == figures and again.settings["repair_images"] == 50


def small_network(path):
    x = inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=4, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, x)).save(path)


@pytest.mark.slow
def test_the_last_table_has_four_files_and_their_bits(tmp_path):
    small_network(tmp_path / "small.keras")
    settings = {
        "model": str(tmp_path / "small.keras"), "dataset": "digits", "normalization": "dataset",
        "force": True, "criterion": "magnitude",
        "batch_size": 512, "prune_ratio": 0.3, "repair_images": 0, "recalibrate_batches": 1,
        "finetune_epochs": 0, "qat_epochs": 0, "precision": "fp32", "train_precision": "fp32",
        "output_dir": str(tmp_path / "run"), "verbosity": 0,
    }  # fmt: skip
    names = {8: "INT8", 16: "INT8, 16-bit activations"}
    pruned = (tmp_path / "run" / "slim.keras").stat
    times = []
    for bits, integers in names.items():
        runner.run(PipelineConfig(**settings, activation_bits=bits))
        times.append(pruned().st_mtime_ns)
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        rows = device_rows(run_content(RunDirectory(tmp_path / "run")))
        numbers = ("float32", integers)
        assert [r.name for r in rows] == [f"{n}, {i}" for n in ("whole", "pruned") for i in numbers]
        for row, start in zip(rows, ("baseline", "baseline_int8", "slim", ""), strict=True):
            prefix = f"{start}_" if start else ""
            assert row.bytes == report[f"{prefix}tflite_bytes"] > 1000
            assert row.arena_bytes == report[f"{prefix}tflite_arena_bytes"] > 1000
            assert 0.0 <= row.accuracy <= 1.0 and row.latency_ms > 0.0 and row.macs > 0
        file = inspect_tflite(tmp_path / "run" / "model_int8.tflite")
        assert file.input.dtype == f"int{bits}"
    assert times[0] == times[1]  # Other bits touch nothing before the quantization.


def test_filters_that_stay_against_the_ratio_are_told(tmp_path):
    said = "prune_ratio=0.5 puts 9 of 18 filters below the threshold, and 0 of them are removed"
    records = {"prune": StageRecord("prune", {}, {}, {"prune_shortfall": said}, 1.0)}
    settings = {"model": "small.keras", "dataset": "digits", "seed": 0}
    assert report_figures(settings, records)["prune_shortfall"] == said
    run = RunDirectory(tmp_path)
    run.write_json(run.config, {"settings": settings})
    assert run_content(run, records).notes["prune"] == f"{said}."


def test_a_command_that_removes_nothing_says_so(tmp_path, capsys):
    """All filters are the model's output."""
    x = inputs = layers.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3, strides=4)(x))
    shake(tf_keras.Model(inputs, x)).save(tmp_path / "frozen.keras")
    config = PipelineConfig(
        model=str(tmp_path / "frozen.keras"),
        dataset="digits",
        normalization="dataset",
        force=True,
        criterion="magnitude",
        prune_ratio=0.5,
        repair_images=0,
        recalibrate_batches=0,
        precision="fp32",
        stages=("train", "rank", "prune", "report"),
        output_dir=str(tmp_path / "run"),
    )
    runner.run(config)
    assert "0 of them are removed" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["params_after"] == report["params_before"]
    assert "0 of them are removed" in report["prune_shortfall"]
    assert "model output" in report["prune_shortfall"]
    assert "0 of them are removed" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_was_pruned_before_there_was_repair_goes_on_without(tmp_path):
    x = inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.Conv2D(8, 3, strides=4, padding="same")(x))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, x)).save(tmp_path / "small.keras")
    settings = {
        "model": str(tmp_path / "small.keras"),
        "normalization": "dataset",
        "force": True,
        "dataset": "digits",
        "criterion": "magnitude",
        "target_macs": 0.5,
        "precision": "fp32",
        "stages": ("train", "rank", "prune"),
        "output_dir": str(tmp_path / "run"),
        "verbosity": 0,
    }
    old = runner.run(PipelineConfig(**settings, repair_images=0))["prune"]
    assert "repair_images" not in old.settings  # as the records of older versions
    again = runner.run(PipelineConfig(**settings))["prune"]
    assert again == old
    repaired = runner.run(PipelineConfig(**settings, repair_images=40))["prune"]
    assert repaired.settings["repair_images"] == 40
    assert repaired.outputs["slim.keras"] != old.outputs["slim.keras"]
