"""The pieces that the built-in networks are made of, each with a seed of its own."""

from __future__ import annotations

import zlib

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels

layers = tf_keras.layers


def seed_of(seed: int, name: str) -> int:
    """A seed for the thing called `name` of a model with a seed."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1)[0] >> 1)


class Blocks:
    """Adds named layers whose initial weights depend on the model's seed and the layer's name.

    Explicit seeds make a network reproducible without touching TensorFlow's global seed, and
    independent of whatever was built before it in the same process.

    Args:
        seed: the model's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def seed_of(self, name: str) -> int:
        """The seed of the layer called `name`."""
        return seed_of(self._seed, name)

    def convolution(
        self, x: tf.Tensor, filters: int, size: int, strides: int, name: str
    ) -> tf.Tensor:
        """A convolution without bias, He-initialised."""
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=tf_keras.initializers.HeNormal(seed=self.seed_of(name)),
            name=name,
        )(x)

    def normalization(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Batch normalisation with the constants of the CIFAR recipes."""
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    def normalized_relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Batch normalisation, then ReLU: `NAME_bn`, `NAME_relu`."""
        return layers.ReLU(name=f"{name}_relu")(self.normalization(x, f"{name}_bn"))

    def shift_channels(self, x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
        """The shortcut without weights: every second pixel, zero channels on both sides."""
        if strides > 1:
            x = layers.MaxPooling2D(1, strides=strides, name=f"{name}_subsample")(x)
        before = (channels - x.shape[-1]) // 2
        positions = range(before, before + x.shape[-1])
        return ScatterChannels(positions, channels, name=f"{name}_pad")(x)

    def logits(self, x: tf.Tensor, num_classes: int) -> tf.Tensor:
        """Global average pooling and the linear classifier, called "logits"."""
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        initializer = tf_keras.initializers.HeNormal(seed=self.seed_of("logits"))
        # float32 whatever the policy: a loss of 16-bit logits is noise.
        return layers.Dense(
            num_classes, kernel_initializer=initializer, name="logits", dtype="float32"
        )(x)
