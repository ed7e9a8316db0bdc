"""Activation functions of Keras 3 that tf_keras lacks or defines differently.

They are registered for tf_keras serialization, so that a translated model saves and loads.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras

_register = tf_keras.utils.register_keras_serializable(package="ehap_tf")


@_register
def relu6(x: tf.Tensor) -> tf.Tensor:
    """min(max(x, 0), 6)."""
    return tf.nn.relu6(x)


@_register
def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """The slope of Keras 3's function for x < 0 is 0.2."""
    return tf.nn.leaky_relu(x, alpha=0.2)


@_register
def log_softmax(x: tf.Tensor) -> tf.Tensor:
    """The logarithm of softmax over the last axis."""
    return tf.nn.log_softmax(x, axis=-1)


@_register
def hard_sigmoid_relu6(x: tf.Tensor) -> tf.Tensor:
    """Keras 3's hard_sigmoid, relu6(x + 3) / 6; that of tf_keras is clip(0.2 x + 0.5, 0, 1)."""
    return tf.nn.relu6(x + tf.constant(3, x.dtype)) / tf.constant(6, x.dtype)


@_register
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """Also known as hard swish: x relu6(x + 3) / 6."""
    return x * hard_sigmoid_relu6(x)


@_register
def log_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sigmoid."""
    return tf.math.log_sigmoid(x)


@_register
def hard_tanh(x: tf.Tensor) -> tf.Tensor:
    """Clips to [-1, 1]."""
    return tf.clip_by_value(x, -1, 1)


@_register
def tanh_shrink(x: tf.Tensor) -> tf.Tensor:
    """The distance from tanh: x - tanh(x)."""
    return x - tf.math.tanh(x)


@_register
def celu(x: tf.Tensor) -> tf.Tensor:
    """max(x, 0) + min(exp(x) - 1, 0)."""
    return tf.maximum(x, 0) + tf.math.expm1(tf.minimum(x, 0))


@_register
def squareplus(x: tf.Tensor) -> tf.Tensor:
    """(x + √(x² + 4)) / 2."""
    return (x + tf.sqrt(tf.square(x) + tf.constant(4, x.dtype))) / tf.constant(2, x.dtype)


# Name in Keras 3 -> the function for tf_keras.
OF_KERAS3: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "log_softmax": log_softmax,
    "hard_sigmoid": hard_sigmoid_relu6,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "log_sigmoid": log_sigmoid,
    "hard_tanh": hard_tanh,
    "tanh_shrink": tanh_shrink,
    "celu": celu,
    "squareplus": squareplus,
    "silu": tf_keras.activations.swish,
    "swish": tf_keras.activations.swish,
}

# Functions of the same name and definition in both.
SHARED = frozenset(
    """elu exponential gelu linear mish relu selu sigmoid softmax softplus softsign tanh""".split()
)
