"""--prune_steps: parts, training between them, and going on inside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tf_keras

from ehap_tf.pipeline.command import rounds, runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.stages import prune
from ehap_tf.pruning import PruningPlan
from ehap_tf.sensitivity import FilterScores

layers = tf_keras.layers
SETTINGS = {
    "dataset": "digits",
    "normalization": "dataset",
    "force": True,
    "criterion": "magnitude",
    "batch_size": 512,
    "target_macs": 0.4,
    "prune_steps": 3,
    "repair_images": 0,
    "recalibrate_batches": 0,
    "precision": "fp32",
    "train_precision": "fp32",
    "stages": ("train", "rank", "prune", "report"),
    "verbosity": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the stages on a small saved model in a given folder."""
    path = tmp_path_factory.mktemp("model") / "small.keras"
    x = inputs = layers.Input((32, 32, 3))
    for filters in (8, 12):
        x = layers.Conv2D(filters, 3, strides=4, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    tf_keras.Model(inputs, x).save(path)

    def run_in(folder):
        return runner.run(PipelineConfig(**SETTINGS, model=str(path), output_dir=str(folder)))

    return run_in


class Killed(BaseException):
    """Stands for a kill: nothing but files is left."""


def test_a_run_that_stops_in_a_step_goes_on_there(run, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    records = run(whole)
    steps = records["prune"].figures["prune_steps"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    macs = [step["macs"] / records["prune"].figures["macs_before"] for step in steps]
    assert macs[0] <= 0.8 and macs[1] <= 0.6 and macs[2] <= 0.4
    assert macs[0] > 0.6 and macs[1] > 0.4
    assert all("trained_validation_accuracy" in step for step in steps[:2])
    report = json.loads((whole / "report.json").read_text())
    assert report["prune_steps"] == steps
    assert not (whole / "checkpoints").exists()
    plan = PruningPlan.from_json((whole / "plan.json").read_text())
    slim = tf_keras.models.load_model(whole / "slim.keras")
    assert slim.count_params() == plan.params_after == report["params_after"]
    first = FilterScores.load(whole / "scores.npz")
    assert {name: len(values) for name, values in first.items()} == dict(plan.filters)

    def die(*_):
        raise Killed

    train, calls = rounds._train, []

    def train_and_die(job, model, number, folder, figures):
        calls.append(number)
        if calls == [1]:
            # After the first training, before its step is kept.
            monkeypatch.setattr(job.run, "write_json", die)
        return train(job, model, number, folder, figures)

    monkeypatch.setattr(rounds, "_train", train_and_die)
    with pytest.raises(Killed):
        run(broken)
    (training,) = broken.glob("checkpoints/prune-*/training_1")
    assert (training / "last.npz").exists()
    keep = rounds._keep

    def keep_and_die(*arguments):
        keep(*arguments)
        raise Killed

    monkeypatch.setattr(rounds, "_keep", keep_and_die)
    with pytest.raises(Killed):
        run(broken)
    assert calls == [1, 1]
    # The second step is damaged: it is made again from the first.
    with pytest.raises(Killed):
        run(broken)
    assert calls == [1, 1, 2]
    (kept,) = broken.glob("checkpoints/prune-*/model_2.keras")
    kept.write_bytes(kept.read_bytes()[:100])
    monkeypatch.setattr(rounds, "_keep", keep)
    run(broken)
    assert calls == [1, 1, 2, 2]
    assert (broken / "plan.json").read_text() == (whole / "plan.json").read_text()
    other = tf_keras.models.load_model(broken / "slim.keras")
    for one, two in zip(slim.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_settings_of_the_steps_reach_the_stage_only_with_steps():
    settings = {**SETTINGS, "prune_steps": 1}
    once = prune.settings(PipelineConfig(**settings))
    assert once == prune.settings(PipelineConfig(**{**settings, "prune_step_epochs": 9}))
    assert "prune_steps" not in once and "criterion" not in once
    steps = prune.settings(PipelineConfig(**SETTINGS))
    assert steps != prune.settings(PipelineConfig(**{**SETTINGS, "prune_step_epochs": 9}))
    assert steps != prune.settings(PipelineConfig(**{**SETTINGS, "probes": 9}))
    with pytest.raises(ValueError, match="without 1x1 implants"):
        PipelineConfig(**SETTINGS, implant_ratio=0.5)
