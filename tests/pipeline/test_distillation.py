"""--distillation: fine-tuning learns from the baseline, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

from ehap_tf.pipeline import recipes, runner
from ehap_tf.pipeline.config import PipelineConfig

layers = tf_keras.layers
SETTINGS = {
    "dataset": "digits",
    "criterion": "magnitude",
    "batch_size": 512,
    "prune_ratio": 0.5,
    "recalibrate_batches": 0,
    "finetune_epochs": 1,
    "precision": "fp32",
    "train_precision": "fp32",
    "stages": ("train", "rank", "prune", "finetune"),
    "verbosity": 0,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    inputs = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=8, activation="relu")(inputs)
    tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x))).save(path)
    return path


@pytest.fixture
def teachers(monkeypatch):
    """What each training was given to learn from."""
    given = []
    fit = recipes.fit

    def remember(*arguments, distillation, **options):
        given.append(distillation)
        return fit(*arguments, distillation=distillation, **options)

    monkeypatch.setattr(recipes, "fit", remember)
    return given


def test_the_baseline_is_the_teacher(small, teachers, tmp_path):
    def run(**settings):
        teachers.clear()
        runner.run(
            PipelineConfig(**SETTINGS, model=str(small), output_dir=str(tmp_path), **settings)
        )
        return list(teachers)

    (taught,) = run(distillation=0.7)
    assert taught.share == 0.7
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    expected = tf_keras.models.load_model(small, compile=False)(x)
    np.testing.assert_allclose(taught.teacher(x), expected, rtol=1e-5, atol=1e-6)
    assert run(distillation=0.7) == []  # done before
    assert run() == [None]


def test_a_share_is_a_fraction():
    with pytest.raises(ValueError, match="distillation must be"):
        PipelineConfig(distillation=1.5)
