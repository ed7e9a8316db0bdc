import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.graph import operator_kind, operator_of
from ehap_tf.models import to_keras3

x = tf_keras.Input((4, 4), name="x")
SPELLINGS = {
    "multiply": [lambda: x * 2, lambda: 2 * x, lambda: tf.multiply(x, 2)],
    "divide": [lambda: x / 2, lambda: tf.divide(x, 2), lambda: tf.math.divide(x, 2)],
    "add": [lambda: x + x, lambda: tf.add(x, 1)],
    "subtract": [lambda: 2 - x, lambda: tf.subtract(x, 1)],
    "negative": [lambda: -x, lambda: tf.negative(x)],
    "matmul": [lambda: x @ x, lambda: tf.matmul(x, x)],
    "sigmoid": [lambda: tf.nn.sigmoid(x), lambda: tf.sigmoid(x)],
    "silu": [lambda: tf.nn.silu(x), lambda: tf.nn.swish(x)],
    "softmax": [lambda: tf.nn.softmax(x), lambda: tf.compat.v1.nn.softmax(x)],
    "pad": [lambda: tf.pad(x, [[0, 0]] * 3), lambda: tf.compat.v1.pad(x, [[0, 0]] * 3)],
    "getitem": [lambda: x[:, 1:]],
    "": [lambda: tf_keras.layers.ReLU()(x)],
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_one_function_has_one_kind(kind):
    assert {operator_kind(make().node.layer) for make in SPELLINGS[kind]} == {kind}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tf.reduce_mean(x, 1, name="m"), {"input_tensor": x, "axis": 1}),
        (lambda: tf.reduce_mean(axis=1, input_tensor=x), {"input_tensor": x, "axis": 1}),
        (lambda: tf.einsum("bij,bjk->bik", x, x), {"equation": "bij,bjk->bik", "inputs": (x, x)}),
        (lambda: tf.transpose(x, [0, 2, 1]), {"a": x, "perm": [0, 2, 1]}),
    ],
)
def test_arguments_have_names_and_no_defaults(make, expected):
    node = make().node
    found = operator_of(node.layer, node.call_args, node.call_kwargs).arguments
    assert repr(dict(found)) == repr(expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.transpose(x, [0, 2, 1]),
        lambda: tf.pad(x, [[0, 0], [1, 1], [0, 0]]),
        lambda: tf.squeeze(x[:, :1], 1),
    ],
)
def test_functions_of_tensorflow_1_within_go_to_keras_3(make):
    model = tf_keras.Model(x, make())
    numbers = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(to_keras3(model)(numbers), model(numbers))
