"""A layer of every kind that owns kernels, and networks around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

layers = tf_keras.layers

# (layer, shape of its input)
KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (lambda **o: layers.Dense(5, **o), (6,)),
    "dense on maps": (lambda **o: layers.Dense(5, **o), (5, 4, 6)),
    "conv1d": (lambda **o: layers.Conv1D(5, 3, padding="causal", dilation_rate=2, **o), (9, 6)),
    "conv2d": (lambda **o: layers.Conv2D(5, 3, padding="same", **o), (6, 5, 6)),
    "conv2d strided": (
        lambda **o: layers.Conv2D(5, (2, 3), strides=2, padding="same", **o),
        (7, 6, 6),
    ),
    "conv2d dilated": (lambda **o: layers.Conv2D(5, (3, 2), dilation_rate=2, **o), (7, 6, 6)),
    "conv3d": (
        lambda **o: layers.Conv3D(3, 2, strides=(1, 2, 1), padding="same", **o),
        (3, 4, 3, 6),
    ),
    "grouped": (lambda **o: layers.Conv2D(4, 3, padding="same", groups=2, **o), (6, 5, 6)),
    "conv1d transposed": (lambda **o: layers.Conv1DTranspose(5, 3, strides=2, **o), (6, 6)),
    "conv2d transposed": (
        lambda **o: layers.Conv2DTranspose(4, (3, 2), strides=2, padding="same", **o),
        (4, 5, 6),
    ),
    "conv2d transposed, output padding": (
        lambda **o: layers.Conv2DTranspose(4, 3, strides=(2, 3), output_padding=1, **o),
        (4, 3, 6),
    ),
    "conv3d transposed": (
        lambda **o: layers.Conv3DTranspose(2, 2, strides=2, padding="same", **o),
        (2, 3, 2, 6),
    ),
    "depthwise": (
        lambda **o: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, **o),
        (6, 5, 6),
    ),
    "depthwise1d": (lambda **o: layers.DepthwiseConv1D(3, strides=2, **o), (9, 6)),
    "separable": (
        lambda **o: layers.SeparableConv2D(5, 3, padding="same", strides=2, **o),
        (6, 6, 6),
    ),
    "separable1d": (
        lambda **o: layers.SeparableConv1D(5, 3, depth_multiplier=2, padding="causal", **o),
        (8, 6),
    ),
}
BATCH = 24


def images(shape: tuple[int, ...], examples: int = BATCH, seed: int = 0) -> np.ndarray:
    """Random inputs with a mean that is not zero."""
    return np.random.default_rng(seed).normal(0.3, 1, (examples, *shape)).astype(np.float32)


def behind_a_dense(kind: str, **options: Any) -> tf_keras.Model:
    """Two Dense layers on the last axis, "first" and "second", then a layer of a kind."""
    make, shape = KINDS[kind]
    x = inputs = layers.Input((*shape[:-1], 5))
    x = layers.Dense(6, activation="tanh", name="first")(x)
    x = layers.Dense(6, activation="tanh", name="second")(x)
    x = make(name="layer", **options)(x)
    return tf_keras.Model(inputs, x)
