from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import clone_with_policy
from ehap_tf.sensitivity.network.emulated_float16 import emulated_call, is_emulated, round_kernels

layers = tf_keras.layers
LAYERS: dict[str, tuple[Callable[[], tf_keras.layers.Layer], tuple[int, ...]]] = {
    "convolution": (lambda: layers.Conv2D(5, 3, strides=2, activation="relu"), (9, 9, 3)),
    "causal": (lambda: layers.Conv1D(5, 3, padding="causal"), (9, 3)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (9, 9, 3)),
    "separable": (lambda: layers.SeparableConv2D(4, 3, use_bias=False), (9, 9, 3)),
    "transposed": (lambda: layers.Conv2DTranspose(4, 3, strides=2), (5, 5, 3)),
    "dense": (lambda: layers.Dense(7, activation="relu"), (4, 6)),
}

pytestmark = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="a GPU computes float16 itself"
)


def _float16_layer(name: str) -> tuple[tf_keras.layers.Layer, tf_keras.Model]:
    make, shape = LAYERS[name]
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input(shape)
    layer = make()
    # A second layer with weights, because the last one stays in float32.
    model = tf_keras.Model(inputs, layers.Dense(1)(layer(inputs)))
    model.set_weights(
        [np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(model.get_weights())]
    )
    return layer, clone_with_policy(model, "mixed_float16")


def _wide_copy(layer: tf_keras.layers.Layer, shape: tuple[int, ...]) -> tf_keras.layers.Layer:
    """The layer in float64 with the same weights."""
    copy = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    copy.build((None, *shape))
    copy.set_weights(layer.get_weights())
    return copy


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_rounded_operands_with_exact_sums(name: str) -> None:
    original, clone = _float16_layer(name)
    shape = LAYERS[name][1]
    layer = clone.get_layer(original.name)
    assert is_emulated(layer)
    round_kernels(clone)
    for weight in layer.weights:
        if "kernel" in weight.name:
            np.testing.assert_array_equal(weight.numpy(), weight.numpy().astype(np.float16))
    wide = _wide_copy(layer, shape)
    x = np.random.default_rng(7).normal(size=(2, *shape)).astype(np.float16)
    results = []
    for call, inputs in (
        (lambda t: emulated_call(layer, t), tf.constant(x)),
        (wide, tf.constant(x, tf.float64)),
    ):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = call(inputs)
            loss = tf.reduce_sum(outputs)
        results.append((outputs, tape.gradient(loss, inputs)))
    (outputs, gradient), (exact_outputs, exact_gradient) = results
    assert outputs.dtype == gradient.dtype == tf.float16
    # One rounding to float16, and float32's in the sum (of the separable layer, two).
    for got, exact in ((outputs, exact_outputs), (gradient, exact_gradient)):
        scale = np.abs(exact).max()
        np.testing.assert_allclose(got, exact, rtol=2**-10, atol=1e-6 * scale)


def test_what_does_not_fit_float16_is_infinite() -> None:
    original, clone = _float16_layer("dense")
    layer = clone.get_layer(original.name)
    layer.set_weights([np.full((6, 7), 200.0), np.zeros(7)])
    assert np.isinf(emulated_call(layer, tf.fill([1, 4, 6], tf.constant(100, tf.float16)))).all()


def test_layers_in_float32_are_left_alone() -> None:
    _, clone = _float16_layer("convolution")
    before = [weight.copy() for weight in clone.layers[-1].get_weights()]
    assert not is_emulated(clone.layers[-1])
    round_kernels(clone)
    for old, new in zip(before, clone.layers[-1].get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
