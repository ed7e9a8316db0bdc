import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.channels import ScatterChannels


def test_places_channels_and_zeros_elsewhere():
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3) + 1
    y = np.asarray(ScatterChannels([4, 0, 2], 5)(x))
    truth = np.zeros((2, 2, 5))
    truth[..., [4, 0, 2]] = x
    assert (y == truth).all()


@pytest.mark.parametrize("positions", [[0, 0], [0, 5], [-1, 1]])
def test_bad_positions(positions):
    with pytest.raises(ValueError, match="distinct and in"):
        ScatterChannels(positions, 5)


def test_wrong_width_names_the_layer():
    with pytest.raises(ValueError, match="'s' expects 2 input channels"):
        ScatterChannels([0, 1], 5, name="s")(np.zeros((1, 3), np.float32))


def test_config_round_trip():
    layer = ScatterChannels([1, 3], 5, name="s")
    again = ScatterChannels.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 6, 3), (2, 4, 4, 3)])
def test_training_and_inference_place_the_same_bits(dtype, shape):
    layer = ScatterChannels([4, 0, 2], 5, dtype=dtype)
    x = tf.cast(np.random.default_rng(0).standard_normal(shape) * 100, dtype)
    gradients = []
    for training in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
        gradients.append(tape.gradient(y, x, output_gradients=y * 3).numpy())
        assert y.dtype == x.dtype
        assert np.array_equal(y.numpy()[..., [4, 0, 2]], x.numpy())
        assert not y.numpy()[..., [1, 3]].any()
    assert np.array_equal(*gradients)


def test_training_on_a_cpu_multiplies():
    layer = ScatterChannels([1, 3], 5)
    x = tf.TensorSpec((None, 4, 4, 2))

    def multiplies(training):
        function = tf.function(lambda x: layer(x, training=training)).get_concrete_function(x)
        return "MatMul" in {operator.type for operator in function.graph.get_operations()}

    assert not multiplies(False)
    assert multiplies(True) != bool(tf.config.list_physical_devices("GPU"))
