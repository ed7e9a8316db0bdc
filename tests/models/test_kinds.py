"""Functions and classes are known by what they are; a name is anybody's."""

from __future__ import annotations

import functools

import keras
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.applications import convnext, inception_resnet_v2

from ehap_tf.channels import ScatterChannels
from ehap_tf.models.keras3.activations import OF_KERAS3
from ehap_tf.models.kinds import function_kind, layer_kind

layers = tf_keras.layers


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (tf_keras.activations.relu, "relu"),
        (tf_keras.activations.swish, "swish"),
        (tf_keras.activations.hard_sigmoid, "hard_sigmoid"),
        (tf.nn.relu6, "relu6"),
        (tf.nn.leaky_relu, "leaky_relu"),
        (tf.nn.silu, "swish"),
        (tf.nn.softmax, "softmax"),
        (tf.nn.log_softmax, "log_softmax"),
        (OF_KERAS3["hard_swish"], "hard_silu"),
        (OF_KERAS3["leaky_relu"], "leaky_relu"),
        (keras.activations.softmax, "softmax"),
        (keras.activations.hard_sigmoid, "hard_sigmoid_relu6"),
    ],
)
def test_functions_of_the_frameworks_are_known(function, kind):
    assert function_kind(function) == kind


def relu(x: tf.Tensor) -> tf.Tensor:
    return 2.0 * tf.nn.relu(x)


@functools.wraps(tf.nn.relu)
def disguised(x: tf.Tensor) -> tf.Tensor:
    return 2.0 * tf.nn.relu(x)


@pytest.mark.parametrize(
    "function",
    [relu, tf.function(relu), disguised, functools.partial(tf.nn.leaky_relu, alpha=0.6)],
)
def test_functions_of_the_user_are_not(function):
    assert function_kind(function) == ""


def test_classes_of_keras_and_of_this_package_are_known():
    known = (
        layers.Conv2D(1, 1),
        layers.BatchNormalization(),
        convnext.LayerScale(1.0, 1),
        convnext.StochasticDepth(0.1),
        inception_resnet_v2.CustomScaleLayer(0.1),
        ScatterChannels([0], 1),
    )
    assert all(layer_kind(layer) == type(layer).__name__ for layer in known)


def test_classes_of_the_user_are_not():
    class Conv2D(layers.Conv2D):
        pass

    class LayerScale(layers.Layer):
        pass

    assert layer_kind(Conv2D(1, 1)) == layer_kind(LayerScale()) == ""
