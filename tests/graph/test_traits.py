import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import is_identity_at_inference, is_noise, kernel_of, relu_limit, traits_of
from ehap_tf.quantization.integer_rules.own_layers import EhapStopGradient

layers = tf_keras.layers


class Renamed(layers.Conv2DTranspose):
    pass


class AlwaysOn(layers.Dropout):
    def call(self, inputs):
        return super().call(inputs, training=True)


class RenamedDropout(layers.Dropout):
    pass


class Squared(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) ** 2


@pytest.mark.parametrize(
    ("layer", "kernel", "linear", "moves"),
    [
        (layers.Dense(2), "kernel", True, False),
        (Renamed(2, 3), "kernel", True, False),
        (Squared(2, 3), None, False, False),
        (layers.SeparableConv2D(2, 3), "pointwise_kernel", True, False),
        (layers.DepthwiseConv2D(3), "depthwise_kernel", True, False),
        (layers.Conv2D(2, 3, data_format="channels_first"), None, True, False),
        (layers.RandomFlip(), None, True, False),
        (layers.Permute((2, 1)), None, True, True),
        (ScatterChannels([0], 2), None, True, False),
        (layers.Softmax(), None, False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else str(value),
)
def test_what_a_layer_is(layer, kernel, linear, moves):
    found = kernel_of(layer)
    assert (None if found is None else found.attribute) == kernel
    assert traits_of(layer).piecewise_linear is linear
    assert traits_of(layer).moves is moves


@pytest.mark.parametrize(
    ("layer", "identity", "noise"),
    [
        (layers.Dropout(0.5), True, True),
        (layers.GaussianNoise(0.5), True, True),
        (RenamedDropout(0.5), True, True),
        (AlwaysOn(0.5), False, False),
        (layers.RandomFlip(), True, False),
        (layers.RandomCrop(2, 2), False, False),
        (layers.ActivityRegularization(0.5), True, False),
        (EhapStopGradient(), True, False),
        (layers.ReLU(), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else str(value),
)
def test_what_is_the_identity_at_inference(layer, identity, noise):
    assert is_identity_at_inference(layer) is identity
    assert is_noise(layer) is noise
    if identity:
        x = tf.random.stateless_uniform((2, 4, 4, 3), (1, 2))
        inference = {"training": False} if layer._expects_training_arg else {}
        np.testing.assert_array_equal(layer(x, **inference), x)


class DoubledReLU(layers.ReLU):
    def call(self, inputs):
        return 2 * super().call(inputs)


class RenamedReLU(layers.ReLU):
    pass


@pytest.mark.parametrize(
    ("layer", "limit"),
    [
        (layers.ReLU(), np.inf),
        (RenamedReLU(6), 6.0),
        (layers.Activation("relu"), np.inf),
        (layers.ReLU(negative_slope=0.1), None),
        (layers.ReLU(threshold=1.0), None),
        (DoubledReLU(), None),
        (layers.LeakyReLU(), None),
        (layers.Dense(2, "relu"), None),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else str(value),
)
def test_limits_of_relus(layer, limit):
    assert relu_limit(layer) == limit
    if limit is not None:
        x = tf.linspace(-10.0, 10.0, 21)
        np.testing.assert_array_equal(layer(x), np.clip(x, 0, limit))


def test_sums_and_lookups():
    assert traits_of(layers.Add()).adds == "plain"
    assert traits_of(CustomScaleLayer(0.1)).adds == "scaled"
    assert traits_of(layers.Concatenate()).adds is None
    assert traits_of(layers.Embedding(4, 2)).looks_up
    assert not traits_of(layers.Dense(2)).looks_up
