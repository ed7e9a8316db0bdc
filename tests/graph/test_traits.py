import pytest
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import traits_of

layers = tf_keras.layers


class Renamed(layers.Conv2DTranspose):
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
