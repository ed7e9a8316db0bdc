"""BatchNorm's statistics, estimated again for a network that lost channels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.applications.convnext import StochasticDepth
from tf_keras.src.layers.normalization.batch_normalization import BatchNormalizationBase

from ehap_tf.channels import trace_channels
from ehap_tf.data import as_dataset
from ehap_tf.models import handing_on, require_inputs
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.rebuild import Rebuilder

_RANDOM_LAYERS = (
    tf_keras.layers.Dropout,
    tf_keras.layers.GaussianNoise,
    tf_keras.layers.GaussianDropout,
    tf_keras.layers.AlphaDropout,
    StochasticDepth,
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

    Each of `batches` batches runs forward in training mode, with noise, dropout and stochastic
    depth off. The new moving mean and variance are the averages over the batches, in which a batch
    weighs as much as it has examples, and over the calls of a BatchNorm that is called several
    times in each: what the moving averages of training tend to, however different the calls' inputs
    are. All other weights stay.
    A BatchNorm layer that is not trainable, or that the model (or one around it) calls with
    `training=False`, runs in inference mode, as Keras defines it, and keeps its statistics.

    Args:
        model: a Functional or Sequential model, usually from `prune`.
        data: `(x, y)` arrays or a batched `tf.data.Dataset`, of training images.
        batches: how many batches to look at; fewer when the data ends before.
        progress: called after every batch.

    Raises:
        ValueError: `batches` is less than 1, or the data is empty or does not fit the model.
    """
    if batches < 1:
        raise ValueError(f"batches must be at least 1. Received: {batches}")
    copy = Rebuilder(trace_channels(model)).rebuild(model)
    # `_flatten_layers` also finds the layers inside nested models and wrappers.
    inside = list(copy._flatten_layers(include_self=False))
    norms = [
        layer for layer in inside if isinstance(layer, BatchNormalizationBase) and layer.trainable
    ]
    if not norms:
        return copy
    sums = [_Sums(norm) for norm in norms]
    forward = tf.function(lambda x: copy(x, training=True), reduce_retracing=True)
    with handing_on(layer for layer in inside if isinstance(layer, _RANDOM_LAYERS)):
        for seen, (x, *_) in enumerate(
            itertools.islice(as_dataset(data, weighted=True), batches), start=1
        ):
            require_inputs(copy, x)
            forward(x)
            progress(seen, batches, {})
    for one in sums:
        one.finish()
    return copy


class _Sums:
    """The statistics of every call of a BatchNorm, added up until `finish` takes their averages.

    A call counts once an example, or the single example of a last batch, which has no variance,
    would count as much as a full batch.
    """

    def __init__(self, norm: BatchNormalizationBase) -> None:
        self._norm = norm
        self._momentum = norm.momentum
        self._statistics = [norm.moving_mean, norm.moving_variance]
        self._totals = [tf.Variable(np.zeros(s.shape, np.float64)) for s in self._statistics]
        self._examples = tf.Variable(0.0, dtype=tf.float64)
        self._call = norm.call
        norm.momentum = 0.0  # the moving statistics are then those of the newest call
        norm.call = self._counted

    def _counted(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = self._call(inputs, *args, **kwargs)
        examples = tf.cast(tf.shape(inputs)[0], tf.float64)
        for total, statistic in zip(self._totals, self._statistics, strict=True):
            total.assign_add(examples * tf.cast(statistic, tf.float64))
        self._examples.assign_add(examples)
        return outputs

    def finish(self) -> None:
        """Gives the BatchNorm the averages, and its own momentum."""
        del self._norm.call  # the method of the class shows again
        self._norm.momentum = self._momentum
        if not self._examples.numpy():
            return  # inside a layer that does not use it
        for statistic, total in zip(self._statistics, self._totals, strict=True):
            statistic.assign(tf.cast(total / self._examples, statistic.dtype))
