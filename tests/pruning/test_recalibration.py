import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.applications.convnext import StochasticDepth

from ehap_tf.pruning import recalibrate

layers = tf_keras.layers


def net(momentum=0.9, norm=layers.BatchNormalization):
    inputs = layers.Input((4, 4, 3))
    x = layers.Dropout(0.5)(inputs)
    x = norm(momentum=momentum, name="bn")(x)
    return tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def test_statistics_are_the_averages_over_batches():
    model = net()
    before = model.get_weights()
    x = np.random.default_rng(0).normal(3, 2, (64, 4, 4, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(64))).batch(16)
    bn = recalibrate(model, data, batches=3).get_layer("bn")
    means = [x[i : i + 16].mean((0, 1, 2)) for i in (0, 16, 32)]
    # Keras' fused BatchNorm keeps the variance with Bessel's correction.
    variances = [x[i : i + 16].var((0, 1, 2), ddof=1) for i in (0, 16, 32)]
    np.testing.assert_allclose(bn.moving_mean, np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, np.mean(variances, 0), rtol=1e-5)
    assert bn.momentum == 0.9
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_a_batch_weighs_as_much_as_it_has_examples():
    inputs = layers.Input((3,))
    model = tf_keras.Model(inputs, layers.BatchNormalization(name="bn")(inputs))
    x = np.random.default_rng(0).normal(3, 2, (33, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(33))).batch(32)
    bn = recalibrate(model, data).get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, x[:32].var(0) * 32 / 33, rtol=1e-5)


def test_a_norm_over_devices_has_its_statistics_estimated_too():
    model = net(norm=layers.experimental.SyncBatchNormalization)
    x = np.random.default_rng(0).normal(3, 2, (32, 4, 4, 3)).astype(np.float32)
    bn = recalibrate(model, tf.data.Dataset.from_tensors((x, np.zeros(32)))).get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, x.var((0, 1, 2)), rtol=1e-4)


def test_only_statistics_change_and_dropout_comes_back():
    model = net()
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 3)).astype(np.float32)
    copy = recalibrate(model, (x, np.zeros(32)), batches=2)
    assert copy.layers[1].rate == 0.5
    for old, new in zip(model.trainable_weights, copy.trainable_weights, strict=True):
        assert (old.numpy() == new.numpy()).all()


def test_frozen_norm_keeps_its_statistics():
    model = net()
    model.get_layer("bn").trainable = False
    x = np.ones((8, 4, 4, 3), np.float32)
    copy = recalibrate(model, (x, np.zeros(8)))
    assert (copy.get_layer("bn").moving_mean.numpy() == 0).all()


def test_a_norm_that_is_called_in_inference_mode_keeps_its_statistics():
    base = net()
    x = np.random.default_rng(0).normal(3, 2, (8, 4, 4, 3)).astype(np.float32)
    for training in (False, None):
        inputs = layers.Input((4, 4, 3))
        model = tf_keras.Model(inputs, base(inputs, training=training))
        bn = recalibrate(model, (x, np.zeros(8))).get_layer(base.name).get_layer("bn")
        assert bn.trainable
        expected = x.mean((0, 1, 2)) if training is None else np.zeros(3)
        np.testing.assert_allclose(bn.moving_mean, expected, rtol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_all_calls_of_a_shared_norm_count(nested):
    shape = (4, 4, 3)
    norm = layers.BatchNormalization(name="bn", momentum=0.99)
    shared = tf_keras.Sequential([layers.Input(shape), norm], name="inner") if nested else norm
    inputs = [layers.Input(shape), layers.Input(shape)]
    model = tf_keras.Model(inputs, [shared(inputs[0]), shared(inputs[1])])
    rng = np.random.default_rng(0)
    near = rng.normal(1, 2, (32, *shape)).astype(np.float32)
    far = rng.normal(-30, 9, (32, *shape)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices(((near, far), np.zeros(32))).batch(16)
    copy = recalibrate(model, data)
    bn = copy.get_layer("inner").get_layer("bn") if nested else copy.get_layer("bn")
    calls = [x[i : i + 16] for x in (near, far) for i in (0, 16)]
    mean = np.mean([x.mean((0, 1, 2)) for x in calls], 0)
    variance = np.mean([x.var((0, 1, 2), ddof=1) for x in calls], 0)
    np.testing.assert_allclose(bn.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, variance, rtol=1e-5)
    # What training tends to.
    for _ in range(300):
        for x in calls[::2] + calls[1::2]:
            norm(x, training=True)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=0.01)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=0.01)
    # The copy is an ordinary model again.
    copy.set_weights(model.get_weights())
    copy.compile("sgd", "mse")
    copy.fit([near, far], [near, far], verbose=0)
    assert bn.call.__func__ is layers.BatchNormalization.call and bn.momentum == 0.99


def test_stochastic_depth_is_off_and_comes_back():
    inputs = layers.Input((4, 4, 3))
    x = StochasticDepth(0.5, name="drop")(inputs)
    model = tf_keras.Model(inputs, layers.BatchNormalization(name="bn")(x))
    x = np.random.default_rng(0).normal(3, 2, (64, 4, 4, 3)).astype(np.float32)
    copy = recalibrate(model, tf.data.Dataset.from_tensors((x, np.zeros(64))))
    bn = copy.get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, x.var((0, 1, 2), ddof=1), rtol=1e-4)
    assert copy.get_layer("drop").drop_path_rate == 0.5


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(None, 4, 4, 3\). Received: .*\(8, 4, 5, 3\)"):
        recalibrate(net(), (np.zeros((8, 4, 5, 3)), np.zeros(8)))


class Unused(layers.Layer):
    """Holds a BatchNorm that it does not call."""

    def build(self, shape):
        self.norm = layers.BatchNormalization()
        self.norm.build(shape)

    def call(self, inputs):
        return inputs


def test_a_norm_that_is_not_called_keeps_its_statistics():
    inputs = layers.Input((4, 4, 3))
    model = tf_keras.Model(inputs, Unused(name="unused")(inputs))
    copy = recalibrate(model, (np.ones((8, 4, 4, 3), np.float32), np.zeros(8)))
    np.testing.assert_array_equal(copy.get_layer("unused").norm.moving_variance, np.ones(3))
