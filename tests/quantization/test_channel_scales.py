"""Dense and Conv2DTranspose: a weight scale for each output channel, in model and file."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from ehap_tf.quantization import TFLiteModel, export_tflite, load_qat, quantize, save_qat
from ehap_tf.quantization.integer_rules import integer_kernels
from ehap_tf.quantization.plan.quantizers import to_channels_last
from tests.quantization.nets import layers, randomize


def weight_scales(path, kinds=(schema.TensorType.INT8,)):
    """Of every kernel of these types. An interpreter would show one scale as many."""
    content = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    return [
        tensor.quantization.scale
        for tensor in model.subgraphs[0].tensors
        if model.buffers[tensor.buffer].data is not None
        and tensor.type in kinds
        and len(tensor.shape) > 1
    ]


def uneven(model, axis=-1):
    """Gives the output channels of every kernel sizes from 1/100 to 1, and zeros one."""
    randomize(model)
    for layer in model.layers:
        for weight in layer.weights:
            if "kernel" in weight.name:
                kernel = np.moveaxis(weight.numpy(), axis, -1)
                kernel = kernel * np.logspace(-2, 0, kernel.shape[-1], dtype=np.float32)
                kernel[..., 1] = 0.0
                weight.assign(np.moveaxis(kernel, -1, axis))
    return model


def ratio_db(received, expected):
    """Signal to noise of the worst channel; each has its own size."""
    axes = tuple(range(expected.ndim - 1))
    noise = np.square(received - expected).sum(axes)
    signal = np.square(expected - expected.mean(axes)).sum(axes)
    return 10 * np.log10((signal / noise)[signal > 0.0].min())


def multilayer(*parts):
    return tf_keras.Sequential([layers.Input((35,)), *parts, layers.Dense(5, name="end")])


DENSE = {
    "with BatchNorm": lambda: multilayer(
        layers.Dense(9), layers.BatchNormalization(), layers.ReLU()
    ),
    "activation": lambda: multilayer(layers.Dense(9, "relu"), layers.Dense(9, "relu")),
    "no bias": lambda: multilayer(layers.Dense(9, use_bias=False)),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", DENSE)
def test_dense_layers_have_a_scale_for_each_unit(name, bits, tmp_path):
    model = uneven(DENSE[name]())
    x = np.random.default_rng(0).standard_normal((300, 35)).astype(np.float32)
    qat = quantize(model, "ptq", bits, representative_data=x)
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert file.float_ops == 0
    # Sums of few weights of 4 bits are often half-way between two integers.
    assert file.difference < (0.05 if bits == 8 else 0.2)
    assert set(file.operators) == {"FULLY_CONNECTED"}
    count = file.operators["FULLY_CONNECTED"]
    assert file.tensor_types.get("INT4", 0) == (count if bits == 4 else 0)
    if bits == 8:
        assert sorted(map(len, weight_scales(file.path))) == sorted([9] * (count - 1) + [5])


def shared():
    dense, inputs = layers.Dense(6, name="dense"), layers.Input((4, 6))
    return tf_keras.Model(inputs, layers.Flatten()(dense(layers.ReLU()(dense(inputs)))))


ELSEWHERE = {
    "each step": lambda: tf_keras.Sequential(
        [layers.Input((4, 6)), layers.TimeDistributed(layers.Dense(5)), layers.Flatten()]
    ),
    "two calls": shared,
    "maps": lambda: tf_keras.Sequential([layers.Input((4, 4, 6)), layers.Dense(5)]),
    "transposed": lambda: tf_keras.Sequential(
        [layers.Input((4, 4, 6)), layers.Conv2DTranspose(5, 3, 2, "same")]
    ),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_kernels_elsewhere_have_a_scale_for_each_channel(name, bits, tmp_path):
    """Counted in the file, which computes what the model does."""
    model = uneven(ELSEWHERE[name](), axis=-2 if name == "transposed" else -1)
    x = np.random.default_rng(0).standard_normal((64, *model.input_shape[1:])).astype(np.float32)
    qat = quantize(model, "ptq", bits, representative_data=x)
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert file.float_ops == 0 and file.difference < (0.05 if bits == 8 else 0.3)
    # The converter stores some kernels of 4 bits in 8.
    types = (schema.TensorType.INT8, schema.TensorType.INT4)
    count = 2 if name == "two calls" else 1
    units = 6 if name == "two calls" else 5
    assert list(map(len, weight_scales(file.path, types))) == [units] * count


def test_small_units_are_as_exact_as_large_ones(tmp_path):
    """With one scale for all the weights of the smallest are -1, 0 and 1."""
    x = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    model = randomize(tf_keras.Sequential([layers.Input((20,)), layers.Dense(6)]))
    sizes = np.asarray([0.01, 0.01, 1.0, 1.0, 1.0, 1.0], np.float32)
    kernel, bias = model.get_weights()
    model.set_weights([kernel * sizes, 0.0 * bias])
    qat = quantize(model, representative_data=x)
    (wrapper,) = (layer for layer in qat.layers if hasattr(layer, "quantize_config"))
    for name, grouping in (("own", "channel"), ("one", "tensor")):
        quantizer = type(wrapper._weight_vars[0][1])(8, grouping)
        rounded = quantizer(wrapper._weight_vars[0][0], False, {}).numpy()
        ratio = ratio_db(x @ rounded, x @ (kernel * sizes))
        assert ratio > 35.0 if name == "own" else ratio < 15.0
    assert wrapper._weight_vars[0][1].grouping == "channel"
    (scales,) = weight_scales(export_tflite(qat, tmp_path / "net.tflite").path)
    expected = np.abs(kernel * sizes).max(axis=0) / 127
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


@pytest.mark.parametrize("bias", ["zeros", "ones", None])
def test_transposed_convolutions_have_a_scale_for_each_filter(bias, tmp_path):
    """A ReLU fuses, whether there is a bias or not."""
    layer = layers.Conv2DTranspose(
        6,
        3,
        2,
        "same",
        activation="relu",
        use_bias=bias is not None,
        bias_initializer=bias or "zeros",
    )
    model = tf_keras.Sequential([layers.Input((5, 5, 4)), layer])
    kernel = layer.kernel.numpy() * np.logspace(-2, 0, 6, dtype=np.float32)[:, None]
    layer.kernel.assign(kernel)
    x = np.random.default_rng(0).standard_normal((100, 5, 5, 4)).astype(np.float32)
    qat = quantize(model, representative_data=x)
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert dict(file.operators) == {"TRANSPOSE_CONV": 1}
    assert file.difference < 0.05
    (scales,) = weight_scales(file.path)
    np.testing.assert_allclose(scales, np.abs(kernel).max(axis=(0, 1, 3)) / 127, rtol=1e-5)


def test_batch_norms_behind_both_train_and_fold(tmp_path):
    """They were part of the kernels, and did not train, while these had one scale."""
    inputs = layers.Input((4, 4, 3))
    x = layers.Conv2DTranspose(5, 3, 2, "same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="images")(x))
    x = layers.BatchNormalization(name="vectors")(layers.Dense(6)(layers.Flatten()(x)))
    model = randomize(tf_keras.Model(inputs, layers.ReLU()(x)))
    x = np.random.default_rng(0).standard_normal((100, 4, 4, 3)).astype(np.float32)
    qat = quantize(model, representative_data=x)
    trained = {weight.name.split("/")[0] for weight in qat.trainable_weights}
    assert {"images", "vectors"} <= trained
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert dict(file.operators) == {"TRANSPOSE_CONV": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1}
    assert file.difference < 0.05
    assert ratio_db(TFLiteModel(file.path)(x), model(x).numpy()) > 25.0


@pytest.mark.parametrize("bits", [8, 4])
def test_files_with_one_scale_load_and_export_as_they_were(bits, monkeypatch, tmp_path):
    """QAT models of version 0.1."""
    model = uneven(DENSE["activation"]())
    x = np.random.default_rng(0).standard_normal((100, 35)).astype(np.float32)
    with monkeypatch.context() as patch:
        dense = dataclasses.replace(integer_kernels._KERNELS[layers.Dense], scales="tensor")
        patch.setitem(integer_kernels._KERNELS, layers.Dense, dense)
        save_qat(quantize(model, "qat", bits, representative_data=x), tmp_path / "old.h5")
    qat = load_qat(tmp_path / "old.h5")
    file = export_tflite(qat, tmp_path / "old.tflite", data=x)
    assert file.difference < (0.05 if bits == 8 else 0.2)
    assert file.tensor_types.get("INT4", 0) == (3 if bits == 4 else 0)
    if bits == 8:
        assert [len(scales) for scales in weight_scales(file.path)] == [1, 1, 1]


def test_kernels_come_back_from_their_groups():
    kernel = tf.reshape(tf.range(3 * 3 * 5 * 4), (3, 3, 5, 4))
    moved = to_channels_last(kernel, "transposed")
    np.testing.assert_array_equal(moved, np.moveaxis(kernel.numpy(), 2, 3))
