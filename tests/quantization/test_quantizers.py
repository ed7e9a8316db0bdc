"""The quantizers against integer arithmetic in numpy, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization.plan.quantizers import (
    EhapActivationQuantizer,
    EhapFixedQuantizer,
    EhapWeightQuantizer,
    activation_range,
)


def integers(quantized: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The integers behind fake-quantized values; they must be integers."""
    values = quantized / scale
    np.testing.assert_allclose(values, np.rint(values), atol=1e-3)
    return np.rint(values).astype(int)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("grouping", "shape", "axes"),
    [
        ("channel", (3, 3, 4, 5), (0, 1, 2)),
        ("depthwise", (3, 3, 4, 2), (0, 1)),
        ("channel", (7, 6), (0,)),
        ("transposed", (3, 3, 5, 4), (0, 1, 3)),
        ("tensor", (7, 6), (0, 1)),
    ],
)
def test_weights_are_symmetric_in_their_group(bits, grouping, shape, axes):
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kernel *= np.random.default_rng(1).uniform(0.01, 10.0, shape[-1]).astype(np.float32)
    quantized = EhapWeightQuantizer(bits, grouping)(tf.constant(kernel), False, {}).numpy()

    levels = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(axis=axes, keepdims=True) * (1 + 1e-6) / levels
    received = integers(quantized, scale)
    assert received.min() >= -levels
    assert received.max() <= levels
    # Every group uses its whole range: the scale is the group's own.
    assert (np.abs(received).max(axis=axes) == levels).all()
    assert np.abs(quantized - kernel).max() <= (0.5001 * scale).max()
    assert (np.abs(quantized - kernel) <= 0.5001 * scale).all()


def test_zero_weights_stay_zero():
    kernel = np.zeros((3, 3, 2, 4), np.float32)
    kernel[..., 1] = np.random.default_rng(0).standard_normal((3, 3, 2))
    quantized = EhapWeightQuantizer()(tf.constant(kernel), False, {}).numpy()
    assert not quantized[..., [0, 2, 3]].any()
    assert quantized[..., 1].any()


@pytest.mark.parametrize("size", [1e-25, 1e-37, 1e-40])
def test_a_filter_that_is_all_but_zero_becomes_zeros(size):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
    kernel[..., 1] *= size
    quantized = EhapWeightQuantizer()(tf.constant(kernel), False, {}).numpy()
    assert not quantized[..., 1].any()
    np.testing.assert_allclose(quantized, kernel, atol=0.51 * np.abs(kernel).max() / 127)


@pytest.mark.parametrize("grouping", ["channel", "depthwise", "transposed", "tensor"])
def test_weight_gradient_is_straight_through(grouping):
    kernel = tf.Variable(np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32))
    upstream = np.random.default_rng(1).standard_normal(kernel.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(EhapWeightQuantizer(8, grouping)(kernel, True, {}) * upstream)
    np.testing.assert_array_equal(tape.gradient(loss, kernel), upstream)


class Host(tf_keras.layers.Layer):
    """Holds the variables of a quantizer."""


def observe(quantizer: EhapActivationQuantizer, batches: list[np.ndarray]) -> tuple[float, float]:
    variables = quantizer.build(None, "output", Host())
    for batch in batches:
        quantizer(tf.constant(batch), True, variables)
    return float(variables["min_var"]), float(variables["max_var"])


def test_first_batch_sets_the_range():
    batch = np.asarray([-0.25, 3.0, 0.5], np.float32)
    assert observe(EhapActivationQuantizer(), [batch]) == (-0.25, 3.0)


def test_early_batches_are_averaged_and_late_ones_decay():
    highs = np.random.default_rng(0).uniform(1.0, 3.0, 150).astype(np.float32)
    batches = [np.asarray([-1.0, high], np.float32) for high in highs]
    assert observe(EhapActivationQuantizer(), batches[:40])[1] == pytest.approx(
        highs[:40].mean(), rel=1e-5
    )
    expected = 0.0
    for n, high in enumerate(highs):
        decay = min(0.99, n / (n + 1))
        expected = decay * expected + (1 - decay) * high
    low, high = observe(EhapActivationQuantizer(), batches)
    assert high == pytest.approx(expected, rel=1e-5)
    assert low == pytest.approx(-1.0)


@pytest.mark.parametrize("batch", [[2.0, 3.0], [-3.0, -2.0], [0.0, 0.0]])
def test_range_contains_zero_and_has_a_width(batch):
    low, high = observe(EhapActivationQuantizer(), [np.asarray(batch, np.float32)])
    assert low <= 0.0 <= high
    assert high - low >= 1e-4 * 0.999


def test_activations_are_asymmetric_integers():
    quantizer = EhapActivationQuantizer()
    variables = quantizer.build(None, "output", Host())
    batch = np.random.default_rng(0).uniform(-1.0, 3.0, 1000).astype(np.float32)
    quantizer(tf.constant(batch), True, variables)
    wide = np.linspace(-2.0, 5.0, 500).astype(np.float32)
    quantized = quantizer(tf.constant(wide), False, variables).numpy()

    low, high = float(variables["min_var"]), float(variables["max_var"])
    scale = (high - low) / 255.0
    zero_point = np.rint(-low / scale)
    expected = np.clip(np.floor(wide / scale + 0.5) + zero_point, 0, 255)
    assert np.abs(integers(quantized, scale) + zero_point - expected).max() <= 1
    assert np.mean(integers(quantized, scale) + zero_point == expected) > 0.99
    assert quantizer(tf.zeros(1), False, variables).numpy() == 0.0


def test_activation_gradient_stops_outside_the_range():
    quantizer = EhapActivationQuantizer()
    variables = quantizer.build(None, "output", Host())
    quantizer(tf.constant([-1.0, 1.0]), True, variables)
    x = tf.constant([-1.5, -0.5, 0.0, 0.9, 1.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, False, variables)
    np.testing.assert_array_equal(tape.gradient(y, x), [0.0, 1.0, 1.0, 1.0, 0.0])


def test_percentile_clips_both_ends():
    values = np.random.default_rng(0).permutation(np.arange(-1000, 1001)).astype(np.float32)
    low, high = activation_range(tf.constant(values), 99.0)
    assert abs(float(low) + 990) <= 1
    assert abs(float(high) - 990) <= 1
    low, high = activation_range(tf.constant(values), 100.0)
    assert (float(low), float(high)) == (-1000.0, 1000.0)


@pytest.mark.parametrize("percentile", [99.0, 90.0])
def test_percentile_is_the_share_that_the_range_holds(percentile):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    low, high = activation_range(tf.constant(values), percentile)
    held = np.mean((values >= low.numpy()) & (values <= high.numpy()))
    assert 100.0 * held == pytest.approx(percentile, abs=0.01)


def test_fixed_range_is_that_of_the_softmax_kernel():
    quantized = EhapFixedQuantizer(0.0, 255.0 / 256.0)(tf.constant([0.0, 0.501, 1.0]), False, {})
    np.testing.assert_allclose(quantized, [0.0, 128 / 256, 255 / 256])


def test_configurations_survive():
    for quantizer in (
        EhapWeightQuantizer(4, "depthwise"),
        EhapActivationQuantizer(8, 99.9),
        EhapFixedQuantizer(-1.0, 1.0),
    ):
        assert type(quantizer).from_config(quantizer.get_config()) == quantizer
    with pytest.raises(ValueError, match="grouping"):
        EhapWeightQuantizer(8, "rows")
