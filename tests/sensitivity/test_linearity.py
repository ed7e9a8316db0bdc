"""What is linear in its weights, where the Gauss-Newton sketch is the Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.sensitivity.network.linearity import smooth_parts
from tests.sensitivity.networks import (
    CLASSES,
    cross_entropy,
    examples,
    joined,
    rank,
    residual_net,
)

layers = tf_keras.layers


def upsampling_net(interpolation: str) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(2, 3, activation="tanh", dtype="float64")(x)
    x = layers.UpSampling2D(interpolation=interpolation, name="larger", dtype="float64")(x)
    x = layers.Conv2D(2, 3, strides=2, activation="tanh", dtype="float64")(x)
    x = layers.GlobalAveragePooling2D(dtype="float64")(x)
    return tf_keras.Model(inputs, layers.Dense(CLASSES, dtype="float64")(x))


def test_nearest_upsampling_has_second_derivatives() -> None:
    model, (x, y) = upsampling_net("nearest"), examples()
    scores = rank(model, estimator="exact")
    assert scores.provenance.notes == ("one product per weight",)
    # One kernel entry after the other, by differences of Keras's own gradients.
    expected, step = [], 1e-5
    for layer in (layer for layer in model.layers if hasattr(layer, "kernel")):
        start, diagonal = layer.kernel.numpy(), np.zeros(layer.kernel.shape)
        for index in np.ndindex(*start.shape):
            gradients = []
            for sign in (1, -1):
                moved = start.copy()
                moved[index] += sign * step
                layer.kernel.assign(moved)
                with tf.GradientTape() as tape:
                    loss = cross_entropy()(y, model(x, training=False))
                gradients.append(tape.gradient(loss, layer.kernel).numpy()[index])
            diagonal[index] = (gradients[0] - gradients[1]) / (2 * step)
        layer.kernel.assign(start)
        expected.append(diagonal.reshape(-1, start.shape[-1]).sum(axis=0))
    np.testing.assert_allclose(joined(scores.trace), np.concatenate(expected), rtol=1e-6, atol=1e-8)


def test_a_layer_without_second_derivatives_is_named() -> None:
    model = upsampling_net("bicubic")
    with pytest.raises(ValueError, match=r"'larger/resize/ResizeBicubic'.*use estimator='gauss_n"):
        rank(model, probes=2, estimator="hutchinson")
    assert np.isfinite(joined(rank(model, probes=2, estimator="gauss_newton"))).all()


def test_a_batch_norm_in_training_mode_is_not_linear() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(3, 3)(inputs)
    x = layers.BatchNormalization(name="restless")(x, training=True)
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))
    x, y = examples()
    scores = rank(model, data=(x.astype(np.float32), y), estimator="gauss_newton", probes=2)
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert "restless (BatchNormalization, in training mode)" in scores.provenance.notes[0]


def test_the_calls_of_the_network_count_and_no_others() -> None:
    steps = [layers.Input((3,)), layers.Dense(3, name="dense"), layers.ReLU()]
    inner = tf_keras.Sequential(steps, name="inner")
    inputs = layers.Input((3,))
    once = tf_keras.Model(inputs, inner(inputs))
    twice = tf_keras.Model(inputs, inner(inner(inputs)))
    assert smooth_parts(once) == smooth_parts(inner) == []
    assert smooth_parts(twice) == ["inner/dense (used 2 times)"]


def test_relu_as_an_operator_is_as_linear_as_the_layer() -> None:
    layer, operator = (rank(residual_net(operators=o), estimator="exact") for o in (False, True))
    assert operator.provenance.notes == layer.provenance.notes
    assert operator.provenance.notes == ("equal to the Gauss-Newton trace",)
    np.testing.assert_allclose(joined(operator), joined(layer), rtol=1e-9)
    smooth = rank(residual_net("tanh", operators=True), estimator="gauss_newton", probes=1)
    assert "math.tanh" in smooth.provenance.notes[0]


@pytest.mark.parametrize(
    ("operator", "is_linear"),
    [
        (lambda x: 2 * x / 3 - 1, True),
        (lambda x: x * [1.0, 2.0, 3.0], True),
        (lambda x: tf.nn.leaky_relu(-abs(x)), True),
        (lambda x: tf.reduce_max(tf.concat([x, x[:, :1]], 1), 1), True),
        (lambda x: tf.cast(tf.cast(x, "float64"), "float32"), True),
        (lambda x: x * x, False),
        (lambda x: 2 / x, False),
        (lambda x: x**2, False),
        (lambda x: tf.cast(tf.cast(x, "int32"), "float32"), False),
        (tf.nn.elu, False),
    ],
)
def test_what_is_linear_of_operators(operator: Any, is_linear: bool) -> None:
    inputs = layers.Input((5, 3))
    model = tf_keras.Model(inputs, layers.Dense(2)(operator(layers.Dense(3)(inputs))))
    assert (not smooth_parts(model)) == is_linear


def test_batch_norm_over_devices_and_the_identity_are_linear() -> None:
    norm = layers.experimental.SyncBatchNormalization(name="norm")
    steps = [layers.Input((4,)), layers.Dense(3, name="dense"), norm, layers.Identity()]
    assert smooth_parts(tf_keras.Sequential(steps)) == []


def test_exact_where_a_nested_model_is_called_twice() -> None:
    inner = tf_keras.Sequential([layers.Input((5,)), layers.Dense(5, "relu", dtype="float64")])
    inputs = layers.Input((5,), dtype="float64")
    model = tf_keras.Model(inputs, inner(inner(inputs)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    (dense,) = inner.layers
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradient = tape.gradient(loss, dense.kernel)
    hessian = np.reshape(outer.jacobian(gradient, dense.kernel), (25, 25))
    truth = np.diag(hessian).reshape(5, 5).sum(axis=0)
    scores = rank(model, tf_keras.losses.MeanSquaredError(), data=(x, y), estimator="exact")
    np.testing.assert_allclose(joined(scores.trace), truth, rtol=1e-9)


def test_a_batch_norm_in_a_nested_model_in_training_mode_is_not_linear() -> None:
    tf_keras.utils.set_random_seed(0)
    inner = tf_keras.Sequential([layers.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.ReLU()])
    inner.add(layers.BatchNormalization(name="norm"))
    inputs = layers.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D()(inner(inputs, training=True))
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(x))
    scores = rank(model, estimator="gauss_newton", probes=2)
    assert scores.provenance.quantity == "Gauss-Newton trace"
    assert scores.provenance.notes[0].endswith("norm (BatchNormalization, in training mode)")


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_reads_itself_is_not_linear_in_its_weights(nested: bool) -> None:
    tf_keras.utils.set_random_seed(2)
    shared, end = (layers.Dense(units, dtype="float64") for units in (5, CLASSES))
    x = inputs = layers.Input((5,), dtype="float64")
    block = tf_keras.Sequential([layers.Input((5,), dtype="float64"), shared])
    for _ in range(2):
        x = layers.ReLU(dtype="float64")((block if nested else shared)(x))
    model = tf_keras.Model(inputs, end(x))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 5)), rng.integers(0, CLASSES, 10)
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = cross_entropy()(y, model(x, training=False))
        gradient = inner.gradient(loss, shared.kernel)
    hessian = outer.jacobian(gradient, shared.kernel, experimental_use_pfor=False)
    diagonal = np.diag(np.reshape(hessian, (25, 25))).reshape(5, 5)
    scores = rank(model, data=(x, y), estimator="exact")
    assert scores.provenance.notes == ("one product per weight",)
    np.testing.assert_allclose(next(iter(scores.trace.values())), diagonal.sum(axis=0), rtol=1e-9)
    sketch = rank(model, data=(x, y), estimator="gauss_newton", probes=2)
    assert "(used 2 times)" in sketch.provenance.notes[0]
