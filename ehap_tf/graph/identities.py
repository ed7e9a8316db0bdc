"""Layers that are the identity at inference, and layers that are made to be it for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import tf_keras
from tf_keras.src.applications.convnext import StochasticDepth

layers = tf_keras.layers

NOISE = (
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    StochasticDepth,
)
"""They disturb what they read in training only."""

IDENTITIES = (
    *NOISE,
    layers.ActivityRegularization,
    layers.RandomBrightness,
    layers.RandomContrast,
    layers.RandomFlip,
    layers.RandomHeight,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomWidth,
    layers.RandomZoom,
)
"""All that do something in training only."""


@contextlib.contextmanager
def handing_on(layers: Iterable[tf_keras.layers.Layer]) -> Iterator[None]:
    """Inside the block, these layers return their input as it is, in training mode too."""
    layers = list(layers)
    for layer in layers:
        layer.call = _hand_on
    try:
        yield
    finally:
        for layer in layers:
            del layer.call  # the method of the class shows again


def _hand_on(inputs: Any, training: Any = None) -> Any:
    del training
    return inputs
