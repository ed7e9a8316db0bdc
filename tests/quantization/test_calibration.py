"""Activation ranges: of all the data, whatever its batches and order, and where training starts."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization import calibrate, quantize
from ehap_tf.quantization.apply.calibration import BINS, FEWEST_BINS
from ehap_tf.quantization.tflite.output_grids import output_quantizer
from tests.quantization.nets import build, images, layers, randomize


def ranges(qat):
    """Ends of every observed range, by layer."""
    found = {}
    for layer in qat.layers:
        _, variables = output_quantizer(layer) or (None, {})
        if "batches" in variables:
            found[layer.name] = (float(variables["min_var"]), float(variables["max_var"]))
    return found


@pytest.fixture(scope="module")
def dense():
    model = randomize(tf_keras.Sequential([layers.Input((30,)), layers.Dense(16, name="dense")]))
    return model, np.random.default_rng(0).standard_normal((320, 30)).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "percentile"),
    [
        ("qat", 100.0),
        ("ptq", 99.0),
        pytest.param("qat", 99.0, marks=pytest.mark.families),
        pytest.param("ptq", 100.0, marks=pytest.mark.families),
    ],
)
def test_ranges_are_of_all_examples_in_any_batches_and_order(dense, method, percentile):
    model, x = dense
    orders = {"as they are": x, "permuted": np.random.default_rng(1).permutation(x)}
    datasets = [
        tf.data.Dataset.from_tensor_slices(rows).batch(-(-320 // count))
        for rows in orders.values()
        for count in (1, 10, 80)
    ]
    found = [
        ranges(quantize(model, method, representative_data=data, act_percentile=percentile))
        for data in [x, *datasets]
    ]
    # Of the quantized kernel: within half a percent of the float one's.
    outputs = model(x).numpy()
    for name, values in (("dense", outputs), ("input_1_quantize", x)):
        key = next(key for key in found[0] if key.startswith(name.split("_")[0]))
        expected = np.percentile(values, ((100 - percentile) / 2, (100 + percentile) / 2))
        np.testing.assert_allclose(found[0][key], expected, rtol=1e-4 if values is x else 5e-3)
    for other in found[1:]:
        for name, ends in other.items():
            np.testing.assert_allclose(ends, found[0][name], rtol=1e-5)


@pytest.mark.parametrize("outlier", [400.0, 4e7])
def test_a_percentile_is_that_of_all_values_to_a_bin(outlier):
    """Rare values far out in one batch, which a mean of batches would remember."""
    x = np.random.default_rng(0).standard_normal((600, 50)).astype(np.float32)
    x[7, 3] = outlier
    model = tf_keras.Sequential([layers.Input((50,)), layers.ReLU()])
    (name,) = (layer.name for layer in quantize(model).layers if layer.name.endswith("_quantize"))
    for percentile in (99.9, 95.0, 60.0):
        data = tf.data.Dataset.from_tensor_slices(x).batch(60)
        qat = quantize(model, representative_data=data, act_percentile=percentile)
        expected = np.percentile(x, ((100 - percentile) / 2, (100 + percentile) / 2))
        bin_width = min((x.max() - x.min()) / BINS, np.ptp(expected) / FEWEST_BINS)
        np.testing.assert_allclose(ranges(qat)[name], expected, atol=1.5 * bin_width)


def test_calibration_replaces_the_ranges_that_were_there(dense):
    model, x = dense
    qat = quantize(model, representative_data=100.0 * x)
    calibrate(qat, x)
    assert ranges(qat) == ranges(quantize(model, representative_data=x))
    calibrate(qat, np.concatenate([x, 2.0 * x]), examples=320)
    assert ranges(qat) == ranges(quantize(model, representative_data=x))
    calibrate(qat, np.concatenate([*(8 * [x]), 2.0 * x]), examples=None)
    name = next(name for name in ranges(qat) if name.endswith("_quantize"))
    assert ranges(qat)[name][1] == pytest.approx(2.0 * x.max())


def test_training_goes_on_from_the_calibrated_range(dense):
    """Its first batch counts for a hundredth."""
    model, x = dense
    qat = quantize(model, representative_data=x)
    before = ranges(qat)
    qat(0.5 * x, training=True)
    halves = ranges(quantize(model, representative_data=0.5 * x))
    for name, ends in ranges(qat).items():
        expected = 0.99 * np.asarray(before[name]) + 0.01 * np.asarray(halves[name])
        np.testing.assert_allclose(ends, expected, rtol=1e-3)


def test_values_that_are_not_finite_name_the_layer():
    model = tf_keras.Sequential([layers.Input((2,)), layers.Dense(2, name="huge"), layers.ReLU()])
    model.layers[0].set_weights([np.full((2, 2), 1e37, np.float32), np.zeros(2)])
    with pytest.raises(ValueError, match=r"'re_lu\w*' computes NaN or infinite values"):
        quantize(model, representative_data=np.full((4, 2), 100.0, np.float32))


def test_calibration_changes_ranges_only():
    model = build("nested")  # has BatchNorm and dropout
    qat = quantize(model)
    before = {weight.name: weight.numpy() for weight in qat.weights}
    calibrate(qat, (images(),))
    changed = {w.name for w in qat.weights if not np.array_equal(before[w.name], w.numpy())}
    assert changed
    assert all(name.split("_")[-1] in ("min:0", "max:0", "batches:0") for name in changed)
    assert all(layer.trainable for layer in qat.layers if "norm" in layer.name)


def test_calibration_sees_no_augmentation():
    def ranges(*augmentation):
        convolution = layers.Conv2D(4, 3)
        model = tf_keras.Sequential(
            [layers.InputLayer((8, 8, 3)), *augmentation, convolution, layers.Flatten()]
        )
        qat = quantize(randomize(model), representative_data=(images(),))
        return qat, qat.get_layer(f"quant_{convolution.name}").get_weights()

    noises = (layers.RandomContrast(0.5), layers.Dropout(0.5), layers.GaussianNoise(1.0))
    qat, received = ranges(*noises)
    for value, expected in zip(received, ranges()[1], strict=True):
        np.testing.assert_array_equal(value, expected)
    # Training does.
    for noise in noises:
        layer = qat.get_layer(f"quant_{noise.name}")
        assert np.abs(layer(images(), training=True) - images()).max() > 0.1
