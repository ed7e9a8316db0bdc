import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.pruning import recalibrate

layers = tf_keras.layers


def net(momentum=0.9):
    inputs = layers.Input((4, 4, 3))
    x = layers.Dropout(0.5)(inputs)
    x = layers.BatchNormalization(momentum=momentum, name="bn")(x)
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
