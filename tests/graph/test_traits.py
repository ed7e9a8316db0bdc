import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import is_identity_at_inference, is_noise, traits_of
from ehap_tf.quantization.own_layers import EhapStopGradient

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
    ("layer", "filters", "linear"),
    [
        (layers.Dense(2), ("kernel", -1), True),
        (Renamed(2, 3), ("kernel", -2), True),
        (Squared(2, 3), ("kernel", -1), False),
        (layers.SeparableConv2D(2, 3), ("pointwise_kernel", -1), True),
        (layers.DepthwiseConv2D(3), None, True),
        (layers.RandomFlip(), None, True),
        (ScatterChannels([0], 2), None, True),
        (layers.Softmax(), None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else str(value),
)
def test_what_a_layer_is(layer, filters, linear):
    assert traits_of(layer).filters == filters
    assert traits_of(layer).piecewise_linear is linear


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
