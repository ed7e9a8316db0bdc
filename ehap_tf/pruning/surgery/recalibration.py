"""BatchNorm's statistics, estimated again for a network that lost channels."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.data import as_dataset
from ehap_tf.graph import AveragedStatistics, as_identity, batch_norms, is_noise
from ehap_tf.models import require_inputs
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.surgery.rebuild import Rebuilder


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
    norms = [norm for norm in batch_norms(copy) if norm.trainable]
    if not norms:
        return copy
    inside = copy._flatten_layers(include_self=False)
    forward = tf.function(lambda x: copy(x, training=True), reduce_retracing=True)
    noise = as_identity(layer for layer in inside if is_noise(layer))
    with AveragedStatistics(norms), noise:
        for seen, (x, *_) in enumerate(
            itertools.islice(as_dataset(data, weighted=True), batches), start=1
        ):
            require_inputs(copy, x)
            forward(x)
            progress(seen, batches, {})
    return copy
