"""Operators that the converter quantizes by itself: in integers, and equal to the QAT model."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization import TFLiteModel, export_tflite, load_qat, quantize, save_qat
from ehap_tf.quantization.tflite.output_grids import output_step
from tests.pruning.nets import computed
from tests.quantization.nets import head

layers = tf_keras.layers

SHAPE = (6, 6, 3)
MAP = np.random.default_rng(5).uniform(-1.0, 1.0, (6, 6, 4)).astype(np.float32)
KERNEL = np.random.default_rng(6).standard_normal((4, 5)).astype(np.float32)
AROUND = [[0, 0], [1, 1], [1, 1], [0, 0]]


def tokens(x):
    return layers.Reshape((36, 4))(x)


def vector(x):
    return layers.Flatten()(x)


def sequences(x):
    return layers.TimeDistributed(
        tf_keras.Sequential(
            [
                layers.Input((6, 4)),
                layers.Conv1D(5, 3, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
        )
    )(x)


GROUPS = {
    "moves": {
        "index": lambda x: x[:, -1],
        "turned": lambda x: x[:, ::-1, 4:0:-2],
        "new axis": lambda x: x[:, None, ..., 2],
        "tile": lambda x: tf.tile(x, [1, 2, 1, 1]),
        "repeat": lambda x: tf.repeat(x, 3, axis=2),
        "stack": lambda x: tf.stack([x, x[:, ::-1]], 1),
        "unstack": lambda x: tf.unstack(x, axis=1)[2],
        "gather": lambda x: tf.gather(x, [3, 0, 1], axis=-1),
        "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
        "space_to_depth": lambda x: tf.nn.space_to_depth(x, 2),
        "roll": lambda x: tf.roll(x, [2, 1], [1, 2]),
        "flip": tf.image.flip_left_right,
        "central_crop": lambda x: tf.image.central_crop(x, 0.6),
        "mirror": lambda x: tf.pad(x, AROUND, "REFLECT"),
        "pad": lambda x: tf.pad(x, AROUND, constant_values=0.3),
    },
    "sizes": {
        "bilinear": lambda x: tf.image.resize(x, (7, 5)),
        "nearest": lambda x: tf.image.resize(x, (7, 5), method="nearest"),
        "Resizing": lambda x: layers.Resizing(4, 9)(x),
        "RepeatVector": lambda x: layers.RepeatVector(3)(layers.Flatten()(x)),
        "max_pool2d": lambda x: tf.nn.max_pool2d(x, 2, 2, "SAME"),
        "avg_pool2d": lambda x: tf.nn.avg_pool2d(x, (1, 3, 3, 1), 1, "SAME"),
        "MaxPooling3D": lambda x: layers.MaxPooling3D(2)(layers.Reshape((6, 6, 2, 2))(x)),
    },
    "elements": {
        "abs": tf.abs,
        "maximum": lambda x: tf.maximum(x, 0.2),
        "minimum": lambda x: tf.minimum(x, 0.2),
        "maximum of two": lambda x: tf.maximum(x, x[..., ::-1]),
        "clip": lambda x: tf.clip_by_value(x, -0.5, 0.7),
        "map": lambda x: x + MAP,
        "map first": lambda x: MAP - x,
        "product": lambda x: MAP * x,
        "squared_difference": lambda x: tf.math.squared_difference(x, x[..., ::-1]),
        "where": lambda x: tf.where(x > 0.3, 0.27 + 0.1 * x, x),
        "where two": lambda x: tf.where((x < 1.0) & (x >= 0.0), x * x, x),
        "where map": lambda x: tf.where(MAP > 0.0, x, -0.7),
        "sign": lambda x: x * tf.sign(x),
        "cast": lambda x: tf.cast(x > 0.0, tf.float32) * x,
    },
    "functions": {
        "exp": lambda x: tf.exp(0.5 * x),
        "sqrt": lambda x: tf.sqrt(tf.sigmoid(x)),
        "rsqrt": lambda x: tf.math.rsqrt(tf.sigmoid(x) + 0.1),
        "log": lambda x: tf.math.log(tf.sigmoid(x)),
        "cube": lambda x: x**3,
        "power": lambda x: tf.sigmoid(x) ** 1.5,
        "power of two": lambda x: 2.0**x,
        "divide": lambda x: x / (tf.exp(x) + 0.5),
        "share": lambda x: tf.exp(x) / tf.reduce_sum(tf.exp(x), -1, keepdims=True),
        "any sign": lambda x: x[..., :2] / (x[..., 2:] * 0.2 + 1.0),
        "reciprocal": lambda x: 1.0 / (1.0 + x * x),
        "divide_no_nan": lambda x: tf.math.divide_no_nan(x, [0.0, 1.0, -2.0, 0.3]),
        "gelu": lambda x: tf.nn.gelu(x, approximate=True),
        "log_softmax": tf.nn.log_softmax,
    },
    "axes": {
        "mean of channels": lambda x: tf.reduce_mean(x, -1),
        "mean taken off": lambda x: x - tf.reduce_mean(x, -1, keepdims=True),
        "mean of rows": lambda x: tf.reduce_mean(x, 1),
        "sum of channels": lambda x: tf.reduce_sum(x, -1),
        "sum of image": lambda x: tf.reduce_sum(x, (1, 2)),
        "max of channels": lambda x: tf.reduce_max(x, -1),
        "min of columns": lambda x: tf.reduce_min(x, 2),
        "logsumexp": lambda x: tf.reduce_logsumexp(x, -1),
        "variance": lambda x: tf.math.reduce_variance(x, -1),
        "deviation": lambda x: tf.math.reduce_std(x, (1, 2), keepdims=True),
        "norm": lambda x: tf.norm(x, axis=-1),
        "l2_normalize": lambda x: tf.nn.l2_normalize(x, -1),
        "l2_normalize image": lambda x: tf.nn.l2_normalize(x, (1, 2)),
        "UnitNormalization": lambda x: layers.UnitNormalization(axis=1)(x),
        "softmax": lambda x: tf.nn.softmax(x, axis=1),
    },
    "products": {
        "matmul": lambda x: tf.matmul(x, x[:, ::-1], transpose_b=True),
        "matmul constant": lambda x: tf.matmul(x, KERNEL),
        "einsum": lambda x: tf.einsum("bijc,bkjc->bikj", x, x),
        "Dot": lambda x: layers.Dot((2, 2))([tokens(x), tokens(x[:, ::-1])]),
        "Dot of vectors": lambda x: layers.Dot(1)([vector(x), vector(x[:, ::-1])]),
        "cosines": lambda x: layers.Dot(2, normalize=True)([tokens(x), tokens(x[:, ::-1])]),
        "EinsumDense": lambda x: layers.EinsumDense("abcd,cdef->abfe", (6, 2, 3), bias_axes="e")(x),
        "TimeDistributed Dense": lambda x: layers.TimeDistributed(layers.Dense(5, "relu"))(x),
        "TimeDistributed net": sequences,
        "attention": lambda x: layers.MultiHeadAttention(2, 4)(tokens(x), tokens(x)),
    },
}


def net(operators):
    """Each operator between the same convolution and a Dense; its output and the Dense's."""
    inputs = layers.Input(SHAPE)
    x = layers.Conv2D(4, 3, padding="same", name="front")(inputs)
    outputs = [operate(x) for operate in operators]
    behind = [layers.Dense(3)(layers.Flatten()(y)) for y in outputs]
    return tf_keras.Model(inputs, [*outputs, *behind])


@pytest.mark.parametrize("group", GROUPS)
def test_operator_is_integer_and_computes_what_the_model_does(group, tmp_path):
    tf_keras.utils.set_random_seed(3)
    model = net(GROUPS[group].values())
    x = np.random.default_rng(1).standard_normal((64, *SHAPE)).astype(np.float32)
    qat = quantize(model, "ptq", representative_data=(x,))
    file = export_tflite(qat, tmp_path / "net.tflite")
    assert not file.float_ops
    received = TFLiteModel(tmp_path / "net.tflite")(x)
    emulated, exact = qat(x, training=False), model(x, training=False)
    for index, name in enumerate([*GROUPS[group], *GROUPS[group]]):
        steps = np.abs(received[index] - emulated[index].numpy()) / output_step(qat, index)
        # The kernel of SQRT rounds down, half a step in the mean, which a Dense adds up.
        # A step of a reciprocal root, rounded the other way for once, makes several of a quotient.
        assert steps.mean() < 1.0 and steps.max() < 8.0, (name, steps.mean(), steps.max())
        error = np.square(received[index] - exact[index].numpy()).mean()
        ratio = 10.0 * np.log10(exact[index].numpy().var() / error)
        assert ratio > (20.0 if index < len(GROUPS[group]) else 15.0), (name, ratio)


def test_a_quotient_that_is_zero_by_zero_is_refused():
    inputs = layers.Input((4,))
    x = layers.Dense(4)(inputs)
    model = tf_keras.Model(inputs, layers.Dense(2)(tf.math.divide_no_nan(x, tf.nn.relu(x))))
    with pytest.raises(ValueError, match=r"math\.divide_no_nan"):
        quantize(model)


def test_operators_train_and_are_saved(tmp_path):
    model = net([GROUPS["functions"]["sqrt"], GROUPS["elements"]["map"]])
    x = np.random.default_rng(1).standard_normal((64, *SHAPE)).astype(np.float32)
    qat = quantize(model, representative_data=(x,))
    qat.compile("sgd", "mse", run_eagerly=True)
    qat.fit(x, model(x), verbose=0)
    assert all(np.isfinite(weight).all() for weight in qat.get_weights())
    save_qat(qat, tmp_path / "qat.h5")
    for ours, loaded in zip(
        computed(qat, x),
        computed(load_qat(tmp_path / "qat.h5"), x),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, loaded)


def test_a_root_of_zero_has_a_gradient():
    inputs = layers.Input((4,))
    outputs = layers.Dense(1)(tf.sqrt(layers.ReLU()(layers.Dense(4, name="front")(inputs))))
    qat = quantize(tf_keras.Model(inputs, outputs))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(qat(tf.zeros((2, 4)), training=True))
    gradients = tape.gradient(loss, qat.trainable_variables)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_places_of_the_largest_values_stay_integers(tmp_path):
    inputs = layers.Input(SHAPE)
    x = layers.Conv2D(4, 3, name="front")(inputs)
    model = tf_keras.Model(inputs, [tf.argmax(x, -1), head(x)])
    images = np.random.default_rng(1).standard_normal((64, *SHAPE)).astype(np.float32)
    qat = quantize(model, representative_data=(images,))
    file = export_tflite(qat, tmp_path / "net.tflite", data=(images,))
    assert not file.float_ops
    places, _ = TFLiteModel(tmp_path / "net.tflite")(images)
    assert np.mean(places == model(images)[0].numpy()) > 0.95
