"""Every public function takes a Keras 3 model and gives one back, without touching it."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.models.keras3.twins import ChannelMask, ScatterChannels
from tests.models.keras3_nets import (
    arrays,
    distance,
    nested,
    outputs,
    residual,
    with_random_weights,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def model() -> Any:
    return with_random_weights(residual())


@pytest.fixture
def data(model: Any) -> tuple[np.ndarray, np.ndarray]:
    return arrays(model, seed=2, examples=16), np.arange(16) % 4


def _random_scores(model: Any) -> ehap.FilterScores:
    return ehap.rank_filters(model, criterion="random")


@pytest.mark.parametrize(
    "residual_mode", ["union", pytest.param("tied", marks=pytest.mark.families)]
)
def test_prune_gives_a_keras_3_model_that_equals_the_mask(
    model: Any, tmp_path: pathlib.Path, residual_mode: str
):
    x = arrays(model)
    before = outputs(model, x)
    plan = ehap.plan_pruning(model, _random_scores(model), 0.5, residual=residual_mode)

    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)

    assert isinstance(slim, keras.Model)
    assert isinstance(masked, keras.Model)
    assert ehap.count_parameters(slim) == plan.params_after < ehap.count_parameters(model)
    assert ehap.count_macs(slim) == plan.macs_after < ehap.count_macs(model)
    assert slim.get_layer("stem").filters == len(plan.kept["stem"])
    assert distance(outputs(masked, x), outputs(slim, x)) < 1e-5
    if residual_mode == "union":
        assert any("scatter" in layer.name for layer in slim.layers)
    for made in (slim, masked):
        made.save(tmp_path / "made.keras")
        loaded = keras.saving.load_model(tmp_path / "made.keras")
        assert distance(outputs(made, x), outputs(loaded, x)) == 0
    # A slim model can be pruned again, and trained by its own Keras.
    again = ehap.prune(slim, ehap.plan_pruning(slim, _random_scores(slim), 0.3))
    assert ehap.count_parameters(again) < ehap.count_parameters(slim)
    again.compile("sgd", LOSS)
    again.fit(x, np.array([0, 1]), verbose=0)
    assert distance(before, outputs(model, x)) == 0


@pytest.mark.parametrize("layer", [ScatterChannels([1, 0], 3), ChannelMask([1, 0])])
def test_masks_of_sequences_get_through(layer: Any):
    x = keras.layers.Masking()(np.array([[[1, 2], [0, 0]]], np.float32))
    assert np.asarray(layer(x)._keras_mask).tolist() == [[True, False]]


def test_the_ranking_is_that_of_the_tf_keras_model(model: Any, data: Any):
    twin = ehap.to_tf_keras(model)
    theirs = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options: dict[str, Any] = {"criterion": "obd", "probes": 4}
    expected = ehap.rank_filters(twin, data, theirs, **options)
    model.compile("sgd", LOSS)
    for scores in (
        ehap.rank_filters(model, data, LOSS, **options),
        ehap.rank_filters(model, data, **options),
        ehap.rank_filters(twin, data, loss=LOSS, **options),
    ):
        for layer in expected:
            np.testing.assert_allclose(scores[layer], expected[layer], rtol=1e-5)


def test_what_is_distributed_over_time_comes_back():
    """A mask stands beside a layer inside, in a model of the two; frozen layers stay frozen."""
    inputs = keras.Input((3, 5, 5, 2))
    x = keras.layers.TimeDistributed(keras.layers.Conv2D(6, 3, name="conv"), name="a")(inputs)
    x = keras.layers.TimeDistributed(keras.layers.GlobalMaxPooling2D(), name="b")(x)
    model = keras.Model(inputs, keras.layers.LSTM(3)(x))
    model.get_layer("a").layer.trainable = False
    plan = ehap.plan_pruning(model, {"a/conv": np.arange(6.0)}, prune_ratio=0.5)
    assert len(plan.kept["a/conv"]) < 6
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(slim(x), masked(x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(masked(x), model(x), atol=1e-3)
    assert not slim.get_layer("a").layer.trainable and slim.get_layer("a").trainable


def test_a_nested_model_with_several_inputs_and_outputs():
    """Losses of Keras 3 by output name; the filters inside the nested models go, too."""
    model = with_random_weights(nested())
    x = arrays(model, examples=8)
    data = (x, {"low": np.ones((8, 2)), "high": np.arange(8) % 3})
    losses = {"low": keras.losses.MeanSquaredError(), "high": LOSS}
    scores = ehap.rank_filters(model, data, losses, estimator="gauss_newton", probes=4)
    assert "backbone/chain/conv" in scores
    plan = ehap.plan_pruning(model, scores, 0.3)
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    assert isinstance(slim, keras.Model)
    assert len(plan.kept["backbone/chain/conv"]) < 4
    assert ehap.count_parameters(slim) == plan.params_after < ehap.count_parameters(model)
    assert distance(outputs(masked, x), outputs(slim, x)) < 1e-5
    trained = ehap.finetune(slim, data, epochs=1, loss=losses)
    assert isinstance(trained, keras.Model)
    assert set(trained.output_names) == set(model.output_names)


def test_recalibrate_and_finetune(model: Any, data: Any):
    before = model.get_weights()
    settled = ehap.recalibrate(model, data)
    assert isinstance(settled, keras.Model)
    trained = ehap.finetune(settled, data, epochs=2, loss=LOSS, batch_size=8)
    assert isinstance(trained, keras.Model)
    assert distance(outputs(settled, data[0]), outputs(trained, data[0])) > 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_repair_is_nearer_to_the_model_before(model: Any, data: Any):
    x = data[0]
    plan = ehap.plan_pruning(model, _random_scores(ehap.to_tf_keras(model)), 0.5)
    slim = ehap.prune(model, plan)
    fixed = ehap.repair(slim, model, plan, x)
    assert isinstance(fixed, keras.Model)
    expected = outputs(model, x)
    assert distance(outputs(fixed, x), expected) < 0.9 * distance(outputs(slim, x), expected)


def test_a_model_of_tf_keras_passes_straight_through(model: Any):
    twin = ehap.to_tf_keras(model)
    plan = ehap.plan_pruning(twin, _random_scores(twin), 0.5)
    assert isinstance(ehap.prune(twin, plan), tf_keras.Model)


def test_quantize_gives_a_tf_keras_model(model: Any, data: Any):
    qat = ehap.quantize(model, representative_data=data)
    assert isinstance(qat, tf_keras.Model)
    assert distance(outputs(model, data[0]), outputs(qat, data[0])) < 0.1


@pytest.mark.slow
def test_compress_and_the_float_file(model: Any, data: Any, tmp_path: pathlib.Path):
    model.compile("sgd", LOSS)
    made = ehap.compress(
        model, data, data, path=tmp_path / "m.tflite", probes=2, finetune_epochs=1, qat_epochs=0,
        force=True,
    )  # fmt: skip
    assert isinstance(made.model, keras.Model)
    assert isinstance(made.qat, tf_keras.Model)
    file = ehap.export_float_tflite(made.model, tmp_path / "float.tflite")
    assert file.path.exists()
