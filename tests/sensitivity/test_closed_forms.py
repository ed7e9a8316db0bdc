"""Traces of models whose Hessian can be written down, and what counts as logits in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from tests.sensitivity.networks import (
    cross_entropy,
    joined,
    largest_deviation,
    linear_model,
)

layers = tf_keras.layers


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton", "exact"])
def test_linear_regression_has_the_closed_form(estimator: str) -> None:
    rng = np.random.default_rng(2)
    x, y, weights = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), rng.random(20)
    # Mean over 3 outputs of squares: H of one output's weights is 2/3 mean(weight * x x').
    truth = np.full(3, 2 / 3 * np.mean(weights * (x**2).sum(axis=1)))
    scores = ehap.rank_filters(
        linear_model(3), (x, y, weights), "mse", estimator=estimator, probes=2000, batch_size=8
    )
    if estimator == "exact":
        np.testing.assert_allclose(scores.trace["dense"], truth, rtol=1e-12)
    else:
        assert largest_deviation(scores, truth) < 4


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "activation", [None, "softmax", tf.nn.softmax, layers.Softmax(dtype="float64")]
)
def test_softmax_regression_has_the_closed_form(smoothing: float, activation: Any) -> None:
    rng = np.random.default_rng(3)
    model = linear_model(3, activation)
    given = model.get_layer("dense").activation
    x = rng.normal(size=(12, 5))
    y = np.eye(3)[rng.integers(0, 3, 12)]
    logits = x @ model.get_layer("dense").get_weights()[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.mean(p * (1 - p) * (x**2).sum(axis=1, keepdims=True), axis=0)
    loss = tf_keras.losses.CategoricalCrossentropy(
        from_logits=activation is None, label_smoothing=smoothing
    )
    exact = ehap.rank_filters(model, (x, y), loss, estimator="exact")
    sketch = ehap.rank_filters(model, (x, y), loss, estimator="gauss_newton", probes=1000)
    np.testing.assert_allclose(exact.trace["dense"], truth, rtol=1e-10)
    assert largest_deviation(sketch, truth) < 4
    assert model.get_layer("dense").activation is given  # the caller's layer is as it was


def test_sigmoid_regression_has_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    model = linear_model(2, "sigmoid")
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 2, (12, 2)).astype(float)
    p = 1 / (1 + np.exp(-x @ model.get_layer("dense").get_weights()[0]))
    truth = np.mean(p * (1 - p) / 2 * (x**2).sum(axis=1, keepdims=True), axis=0)
    exact = ehap.rank_filters(model, (x, y), "binary_crossentropy", estimator="exact")
    np.testing.assert_allclose(exact.trace["dense"], truth, rtol=1e-10)


LABELS_IN_A_ROW = [
    ("mse", None),
    ("mae", None),
    (tf_keras.losses.Huber(), None),
    (tf_keras.losses.MeanSquaredError(), None),
    ("binary_crossentropy", "sigmoid"),
    (tf_keras.losses.BinaryCrossentropy(), "sigmoid"),
    (tf_keras.losses.BinaryCrossentropy(from_logits=True), None),
    (lambda labels, outputs: tf.abs(labels - outputs), None),
]


@pytest.mark.parametrize(("loss", "activation"), LABELS_IN_A_ROW)
def test_labels_in_a_row_are_those_in_a_column_for_one_output(loss: Any, activation: Any) -> None:
    """Keras itself is the oracle: its `evaluate` takes both."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 2, 12).astype(float)
    model = linear_model(1, activation)
    column = ehap.rank_filters(model, (x, y[:, np.newaxis]), loss, probes=2)
    row = ehap.rank_filters(model, (x, y), loss, probes=2)
    np.testing.assert_allclose(row["dense"], column["dense"], rtol=1e-12)
    removed = ehap.rank_filters(model, (x, y), loss, "oracle").signed["dense"]
    model.compile("sgd", loss)
    before = model.evaluate(x, y, verbose=0)
    model.get_layer("dense").kernel.assign(np.zeros((5, 1)))
    np.testing.assert_allclose(removed, model.evaluate(x, y, verbose=0) - before, rtol=1e-4)


def test_a_softmax_layer_counts_as_logits() -> None:
    rng = np.random.default_rng(3)
    plain = linear_model(3)
    ended = tf_keras.Sequential(
        [tf_keras.layers.Input((5,), dtype="float64"), plain, layers.Softmax(dtype="float64")]
    )
    data = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    expected = ehap.rank_filters(plain, data, cross_entropy(), estimator="exact")
    scores = ehap.rank_filters(ended, data, "sparse_categorical_crossentropy", estimator="exact")
    name = f"{plain.name}/dense"
    assert list(scores) == [name]
    np.testing.assert_allclose(scores[name], expected["dense"], rtol=1e-12)


def test_the_output_of_a_nested_model_that_is_not_its_first() -> None:
    """The outer model's own loss, filter by filter removed by hand, is the oracle."""
    options: dict[str, Any] = {"dtype": "float64"}
    inputs, outer = layers.Input((5,), **options), layers.Input((5,), **options)
    x = layers.Dense(3, activation="relu", name="shared", **options)(inputs)
    ends = [layers.Dense(n, activation="softmax", **options)(x) for n in (3, 4)]
    inner = tf_keras.Model(inputs, ends, name="inner")
    model = tf_keras.Model(outer, inner(outer)[1])
    rng = np.random.default_rng(6)
    data = rng.normal(size=(12, 5)), rng.integers(0, 4, 12)
    found = ehap.rank_filters(model, data, "sparse_categorical_crossentropy", "oracle")
    loss = tf_keras.losses.SparseCategoricalCrossentropy()
    kernel = inner.get_layer("shared").kernel
    start, before = kernel.numpy(), float(loss(data[1], model(data[0])))
    changes = []
    for column in range(3):
        kernel.assign(np.where(np.arange(3) == column, 0, start))
        changes.append(float(loss(data[1], model(data[0]))) - before)
    np.testing.assert_allclose(found.signed["inner/shared"], changes, rtol=1e-6)
    exact = ehap.rank_filters(model, data, "sparse_categorical_crossentropy", "obd", "exact")
    assert np.isfinite(joined(exact)).all()
