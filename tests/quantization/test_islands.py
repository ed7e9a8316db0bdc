"""What `allow_float` keeps in float: tried before anything is trained, and really converted."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization import (
    export_tflite,
    quantize,
    require_quantizable,
)
from ehap_tf.quantization.tflite import islands

layers = tf_keras.layers

SHAPE = (6, 8)


class Product(layers.Layer):
    """What it reads times weights of its own, in float."""

    def build(self, input_shape):
        self.weight = self.add_weight("weight", shape=(input_shape[-1], input_shape[-1]))
        super().build(input_shape)

    def call(self, inputs):
        return tf.matmul(tf.sin(tf.matmul(inputs, self.weight)), self.weight)


class Turned(layers.Layer):
    """Moves values only."""

    def call(self, inputs):
        return tf.reshape(inputs[:, ::-1], (-1, 3, 2 * inputs.shape[-1]))


class Largest(layers.Layer):
    """Selects values only."""

    def call(self, inputs):
        return tf.sort(inputs, axis=1)[:, -3:]


class Squared(layers.Layer):
    """Computes something of large values only."""

    def call(self, inputs):
        return tf.where(inputs > 6.0, inputs * inputs, inputs)


def net(layer, place):
    """A small net with `layer` at its start, in its middle or at its end."""
    inputs = layers.Input(SHAPE)
    x = inputs
    if place != "start":
        x = layers.Conv1D(8, 3, padding="same", activation="sigmoid")(x)
    x = layer(x)
    if place != "end":
        x = layers.Dense(2)(layers.Flatten()(x))
    return tf_keras.Model(inputs, x)


def numbers(count=32):
    return np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: layers.LSTM(3), "middle"),
        pytest.param(
            lambda: layers.Bidirectional(layers.LSTM(2)), "end", marks=pytest.mark.families
        ),
        pytest.param(layers.ThresholdedReLU, "start", marks=pytest.mark.families),
        (layers.ThresholdedReLU, "middle"),
        pytest.param(layers.ThresholdedReLU, "end", marks=pytest.mark.families),
        (Product, "start"),
        (Product, "middle"),
        (Product, "end"),
        (Turned, "middle"),
        (Turned, "end"),
        (Largest, "middle"),
    ],
)
def test_a_float_layer_converts_wherever_it_stands(make, place, tmp_path):
    tf_keras.utils.set_random_seed(1)
    model = net(make(), place)
    with pytest.raises(ValueError, match=r"not supported in integers"):
        quantize(model)
    qat = quantize(model, representative_data=(numbers(),), allow_float=True)
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=(numbers(),))
    assert file.difference < 1.0


def voxels():
    inputs = layers.Input((4, 4, 4, 2))
    x = layers.AveragePooling3D(2, name="pool")(inputs)
    return tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (voxels, r"'pool' \(AveragePooling3D\) cannot be kept in float.*AvgPool3D"),
        (lambda: net(tf.math.erf, "start"), r"\(math\.erf\) cannot be kept in float.*Erf"),
        (lambda: net(tf.math.erf, "middle"), r"\(math\.erf\) cannot be kept in float.*Erf"),
        (lambda: net(tf.math.erf, "end"), r"\(math\.erf\) cannot be kept in float.*Erf"),
    ],
)
def test_what_tflite_cannot_run_is_said_before_training(make, text):
    with pytest.raises(ValueError, match=text):
        require_quantizable(make(), allow_float=True)


def test_what_computes_beyond_a_threshold_has_a_range_of_its_own():
    """On its input's grid its largest values would be cut off, in the model and in the file."""
    model = net(Squared(), "start")
    x = 8.0 * numbers()
    qat = quantize(model, representative_data=(x,), allow_float=True)
    ranges = {float(w) for w in qat.weights if w.name.endswith("_max:0")}
    assert np.square(x.max()) == pytest.approx(max(ranges), rel=1e-3)


def test_an_island_is_tried_once(monkeypatch):
    model = net(layers.ThresholdedReLU(theta=0.625), "middle")
    require_quantizable(model, allow_float=True)
    monkeypatch.setattr(islands, "integer_file", None)
    require_quantizable(net(layers.ThresholdedReLU(theta=0.625), "middle"), allow_float=True)
    with pytest.raises(
        ValueError, match=r"'thresholded\w*' \(ThresholdedReLU\) cannot be kept in float"
    ):
        require_quantizable(net(layers.ThresholdedReLU(theta=0.75), "middle"), allow_float=True)
