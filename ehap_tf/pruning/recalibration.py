"""BatchNorm's statistics, estimated again for a network that lost channels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.data import as_dataset
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.rebuild import Rebuilder

_RANDOM_LAYERS = (
    tf_keras.layers.Dropout,
    tf_keras.layers.GaussianNoise,
    tf_keras.layers.GaussianDropout,
    tf_keras.layers.AlphaDropout,
)


@either_keras()
def recalibrate(
    model: tf_keras.Model,
    data: Any,
    batches: int = 32,
    *,
    progress: ProgressCallback = no_progress,
) -> tf_keras.Model:
    """A copy of the model with BatchNorm's moving statistics re-estimated.

    Each of `batches` batches runs forward in training mode, with noise and dropout off; the new
    moving mean and variance are the plain averages over the batches. All other weights stay.
    A BatchNorm layer that is not trainable runs in inference mode, as Keras defines it, and keeps
    its statistics.

    Args:
        model: a Functional or Sequential model, usually from `prune`.
        data: `(x, y)` arrays or a batched `tf.data.Dataset`, of training images.
        batches: how many batches to look at; fewer when the data ends before.
        progress: called after every batch.

    Raises:
        ValueError: `batches` is less than 1, or the data is empty.
    """
    if batches < 1:
        raise ValueError(f"batches must be at least 1. Received: {batches}")
    copy = Rebuilder(trace_channels(model)).rebuild(model)
    # `_flatten_layers` also finds the layers inside nested models and wrappers.
    inside = list(copy._flatten_layers(include_self=False))
    norms = [
        layer
        for layer in inside
        if isinstance(layer, tf_keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return copy
    rates = _silence([layer for layer in inside if isinstance(layer, _RANDOM_LAYERS)])
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics are then those of the newest batch
    forward = tf.function(lambda x: copy(x, training=True), reduce_retracing=True)
    sums = [[np.zeros(s.shape, np.float64) for s in _statistics(norm)] for norm in norms]
    seen = 0
    for x, _ in itertools.islice(as_dataset(data), batches):
        forward(x)
        seen += 1
        for norm, totals in zip(norms, sums, strict=True):
            for statistic, total in zip(_statistics(norm), totals, strict=True):
                total += statistic.numpy()
        progress(seen, batches, {})
    for norm, totals, momentum in zip(norms, sums, momenta, strict=True):
        norm.momentum = momentum
        for statistic, total in zip(_statistics(norm), totals, strict=True):
            statistic.assign(total / seen)
    for layer, attribute, value in rates:
        setattr(layer, attribute, value)
    return copy


def _statistics(norm: tf_keras.layers.BatchNormalization) -> list[tf.Variable]:
    return [norm.moving_mean, norm.moving_variance]


def _silence(random_layers: list[Any]) -> list[tuple[Any, str, float]]:
    """Sets the rates of random layers to zero; returns what they were."""
    rates = []
    for layer in random_layers:
        attribute = "stddev" if hasattr(layer, "stddev") else "rate"
        rates.append((layer, attribute, getattr(layer, attribute)))
        setattr(layer, attribute, 0.0)
    return rates
