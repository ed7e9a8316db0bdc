"""The file against integer arithmetic written out in numpy, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from ehap_tf.quantization import export_tflite, quantize
from ehap_tf.quantization.tflite.evaluate import TFLiteModel, to_integers
from ehap_tf.quantization.tflite.tflite_file import open_interpreter
from tests.pruning.nets import computed

layers = tf_keras.layers


def small_net(seed: int = 0) -> tf_keras.Model:
    rng = np.random.default_rng(seed)
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(5, 3, use_bias=False, name="convolution")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    outputs = layers.Dense(4, name="logits")(layers.Flatten()(x))
    model = tf_keras.Model(inputs, outputs)
    for weight in model.weights:
        noise = 0.5 * rng.standard_normal(weight.shape).astype(np.float32)
        weight.assign(0.1 + np.abs(noise) if "variance" in weight.name else noise)
    return model


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and int8 zero point of a range."""
    scale = (high - low) / 255.0
    return scale, int(np.rint(-low / scale)) - 128


def observed(qat: tf_keras.Model, name: str) -> tuple[float, int]:
    """Scale and zero point of a layer's output, from the range it has seen."""
    weights = {weight.name.split("/")[-1]: weight for weight in qat.get_layer(name).weights}
    return affine(float(weights["output_min:0"]), float(weights["output_max:0"]))


def requantize(accumulator: np.ndarray, multiplier: np.ndarray, zero_point: int) -> np.ndarray:
    return np.clip(np.rint(accumulator * multiplier) + zero_point, -128, 127).astype(np.int64)


def test_two_layers_by_hand(tmp_path):
    model = small_net()
    x = np.random.default_rng(1).standard_normal((40, 6, 6, 3)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    file = export_tflite(qat, tmp_path / "net.tflite")

    # The convolution: integers per channel, BatchNorm folded, ReLU as saturation.
    in_scale, in_zero = file.input.scale, file.input.zero_point
    kernel = model.get_layer("convolution").kernel.numpy().astype(np.float64)
    norm = model.get_layer("norm")
    gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    shift = norm.beta.numpy() - norm.moving_mean.numpy() * gain
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    kernel_integers = np.rint(kernel / step) * np.sign(gain)
    folded_step = step * np.abs(gain)
    bias = np.rint(shift / (in_scale * folded_step))
    hidden_scale, hidden_zero = observed(qat, "quant_relu")
    integers = to_integers(x, file.input).astype(np.int64)
    patches = np.lib.stride_tricks.sliding_window_view(integers - in_zero, (3, 3), axis=(1, 2))
    accumulator = np.einsum("nhwcij,ijcf->nhwf", patches, kernel_integers) + bias
    assert np.abs(accumulator).max() < 2**31
    hidden = requantize(accumulator, in_scale * folded_step / hidden_scale, hidden_zero)
    hidden = np.maximum(hidden, hidden_zero)

    # The classifier: one scale for each unit.
    matrix, offsets = (w.astype(np.float64) for w in model.get_layer("logits").get_weights())
    matrix_step = np.abs(matrix).max(axis=0) / 127
    accumulator = (hidden - hidden_zero).reshape(len(x), -1) @ np.rint(matrix / matrix_step)
    accumulator += np.rint(offsets / (hidden_scale * matrix_step))
    out_scale, out_zero = observed(qat, "logits")
    expected = requantize(accumulator, hidden_scale * matrix_step / out_scale, out_zero)

    assert out_scale == pytest.approx(file.output.scale, rel=1e-5)
    assert out_zero == file.output.zero_point
    interpreter = open_interpreter(file.path)
    for image, row in zip(integers.astype(np.int8), expected, strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        received = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
        np.testing.assert_array_equal(received, row)


def test_nearly_dead_channel_keeps_its_bias(tmp_path):
    """A tiny gamma makes a tiny step, in units of which the bias would overflow int32."""
    model = small_net()
    norm = model.get_layer("norm")
    gamma, beta = norm.gamma.numpy(), norm.beta.numpy()
    gamma[[0, 1, 2]], beta[[0, 1, 2]] = [0.0, 1e-7, -1e-5], [0.7, 1.3, 0.9]
    norm.gamma.assign(gamma)
    norm.beta.assign(beta)
    x = np.random.default_rng(1).standard_normal((40, 6, 6, 3)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    file = export_tflite(qat, tmp_path / "net.tflite")
    assert file.float_operators == ()

    difference = TFLiteModel(file.path)(x) - computed(qat, x)
    assert np.abs(difference).max() <= 1.001 * file.output.scale


def dead_net() -> tf_keras.Model:
    """Kernels of each kind in front of a ReLU that lets nothing through, an output behind each."""
    inputs = layers.Input((6, 6, 3))

    def dead(layer: Any, norm: bool = False) -> Any:
        x = layer(layers.Flatten()(inputs) if isinstance(layer, layers.Dense) else inputs)
        return layers.ReLU()(layers.BatchNormalization()(x) if norm else x)

    found = [
        dead(layers.Conv2D(4, 3)),
        dead(layers.Conv2D(4, 3), norm=True),
        dead(layers.DepthwiseConv2D(3)),
        dead(layers.Conv2DTranspose(4, 3)),
        dead(layers.Dense(5)),
        layers.Concatenate()([dead(layers.Conv2D(2, 3)), dead(layers.Conv2D(3, 3))]),
    ]
    model = tf_keras.Model(inputs, [layers.Dense(2)(layers.Flatten()(x)) for x in found])
    for layer in model.layers:
        if getattr(layer, "use_bias", False):
            layer.bias.assign(layer.bias + (0.5 if layer.name in model.output_names else -1e5))
    return model


@pytest.mark.parametrize("seed", [0, 3, 6, 28])
def test_what_a_dead_relu_leaves_keeps_the_file_in_xnnpack(tmp_path, seed):
    """Outputs with all but no range: XNNPACK takes no steps far below the accumulators' own.

    Other kernels shift sums to the left in 32 bits: those of seed 6 came back positive.
    """
    tf_keras.utils.set_random_seed(seed)
    model = dead_net()
    x = 100.0 * np.random.default_rng(1).standard_normal((40, 6, 6, 3)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert file.difference == 0.0
    Interpreter(str(file.path)).allocate_tensors()
    for received in TFLiteModel(file.path)(x):
        np.testing.assert_allclose(received, 0.5, rtol=0.01)


def test_equal_biases_keep_the_scales_of_their_channels(tmp_path):
    """The converter writes a constant of equal numbers with one integer for all channels."""
    model = tf_keras.Sequential([layers.Input((8, 8, 4)), layers.Conv2D(4, 1)])
    kernel = np.diag([1.0, 2.0, 4.0, 0.125]).astype(np.float32)[None, None]
    model.layers[-1].set_weights([kernel, np.full(4, 1e4, np.float32)])
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (64, 8, 8, 4)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert file.difference == 0.0
    np.testing.assert_allclose(TFLiteModel(file.path)(x), computed(model, x), rtol=0.01)
