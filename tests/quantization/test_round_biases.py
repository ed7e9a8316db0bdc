"""Biases on the grid of the file's int32: where they lie, how far they move, and what it is for."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tf_keras

from ehap_tf.models import build_model
from ehap_tf.quantization import TFLiteModel, export_tflite, quantize, round_biases
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph
from ehap_tf.quantization.tflite.tflite_file import open_interpreter
from tests.pruning.nets import computed
from tests.quantization.nets import SHAPE, build, conv, head, images, layers, randomize


def norm_without_center() -> tf_keras.Model:
    """One of its channels has a gain of zero: no mean can move its output."""
    inputs = layers.Input(SHAPE)
    x = layers.BatchNormalization(center=False, name="norm")(conv(inputs, use_bias=False))
    model = randomize(tf_keras.Model(inputs, head(layers.ReLU()(x))))
    gamma = model.get_layer("norm").gamma
    gamma.assign(np.r_[0.0, gamma.numpy()[1:]])
    return model


def without_bias() -> tf_keras.Model:
    inputs = layers.Input(SHAPE)
    x = layers.Flatten()(conv(inputs, use_bias=False))
    return randomize(tf_keras.Model(inputs, layers.Dense(4)(x)))


def biases(qat: tf_keras.Model) -> np.ndarray:
    """What the model adds to each channel of its convolutions and Dense layers."""
    return np.concatenate([kernel.bias for kernel in IntegerGraph(qat).kernels.values()])


def stored_biases(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The biases that a file holds as int32: their values, and the value of one integer of each."""
    interpreter = open_interpreter(path)
    values, units = [], []
    for tensor in interpreter.get_tensor_details():
        scales = tensor["quantization_parameters"]["scales"]
        if tensor["dtype"] is np.int32 and len(tensor["shape"]) == 1 and len(scales):
            integers = interpreter.get_tensor(tensor["index"])
            units.append(np.broadcast_to(scales, integers.shape).astype(np.float64))
            values.append(integers * units[-1])
    return np.concatenate(values), np.concatenate(units)


@pytest.mark.parametrize(
    "model",
    [
        "union_block",
        "squeeze_excite",
        "inception",
        "shared",
        "separable",
        "transposed",
        norm_without_center,
        without_bias,
    ],
)
def test_the_model_has_the_biases_of_the_file(model, tmp_path):
    qat = quantize(
        build(model) if isinstance(model, str) else model(), representative_data=(images(),)
    )
    before = biases(qat)
    round_biases(qat)
    after = biases(qat)
    values, units = stored_biases(export_tflite(qat, tmp_path / "net.tflite").path)
    nearest = np.abs(values[None] - after[:, None]).argmin(axis=1)
    np.testing.assert_allclose((after - values[nearest]) / units[nearest], 0.0, atol=0.02)
    moved = np.abs(after - before) / units[nearest]
    assert 0.1 < moved.max() <= 0.52
    np.testing.assert_allclose(biases(qat), after, rtol=1e-6)  # The export had nothing to round.


def test_a_deep_model_computes_what_its_file_computes(tmp_path):
    """Without the rounding 62% of these outputs are equal."""
    model = randomize(build_model("resnet20", num_classes=10, input_shape=(16, 16, 3), seed=0))
    x = np.random.default_rng(0).standard_normal((64, 16, 16, 3)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    unrounded = computed(qat, x)
    file = export_tflite(qat, tmp_path / "net.tflite")
    outputs, step = TFLiteModel(file.path)(x), file.output.scale

    def equal(expected: np.ndarray) -> float:
        return float(np.mean(np.abs(outputs - expected) < step / 2))

    assert equal(computed(qat, x)) >= 0.9 > equal(unrounded)
