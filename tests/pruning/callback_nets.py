"""A small net, its data and its optimizer, for pruning while training."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras

layers = tf_keras.layers
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(seed: int = 0, operators: bool = False) -> tf_keras.Model:
    """A residual net with BatchNorm, a convolution without, a depthwise and a Dense layer.

    With `operators` activations and sum are operators in place of layers.
    """
    tf_keras.utils.set_random_seed(seed)
    relu = tf.nn.relu if operators else lambda x: layers.ReLU()(x)
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = shortcut = relu(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.Conv2D(12, 3, padding="same", name="expand")(x)
    x = relu(layers.BatchNormalization(name="expand_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = relu(layers.BatchNormalization(name="depthwise_bn")(x))
    x = layers.BatchNormalization(name="project_bn")(layers.Conv2D(8, 1, name="project")(x))
    x = relu(x + shortcut if operators else layers.Add()([x, shortcut]))
    x = layers.Conv2D(8, 3, activation="relu", name="bare")(x)
    x = layers.Dense(10, activation="tanh", name="hidden")(layers.GlobalAveragePooling2D()(x))
    return tf_keras.Model(inputs, layers.Dense(4, name="logits")(x))


def data(examples: int = 64, batch: int = 8) -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 6, 6, 3)).astype(np.float32)
    y = rng.integers(0, 4, examples)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def compiled(model: tf_keras.Model) -> tf_keras.Model:
    model.compile(tf_keras.optimizers.SGD(0.05, momentum=0.9), LOSS)
    return model
