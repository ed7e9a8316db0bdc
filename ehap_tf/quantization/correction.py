"""BatchNorm and biases fitted to quantization, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import AveragedStatistics, as_identity, batch_norm_numbers, batch_norms
from ehap_tf.quantization.batch_norm import training_only
from ehap_tf.quantization.integer_graph import IntegerGraph
from ehap_tf.quantization.wrappers import require_qat, training_forward


def reestimate_batch_norm(qat: tf_keras.Model, batches: Iterable[Sequence[np.ndarray]]) -> None:
    """Averages BatchNorm's statistics over batches of the quantized network, in place.

    Where no BatchNorm is left that is trainable, nothing changes, with a warning.

    Rounding shifts and spreads what reaches a BatchNorm; its statistics of the float network no
    longer fit. Dropout, noise and augmentation are off. Activation ranges follow the batches
    meanwhile, as in training, and are then what they were.

    Args:
        qat: a model from `quantize`.
        batches: one array for each input, each large enough for statistics of its own; a larger
            one counts for more.

    Raises:
        ValueError: no batch holds more than one example.
    """
    norms = [norm for norm in batch_norms(qat) if norm.trainable]
    if not norms:
        warnings.warn(
            "reestimate changed nothing: the quantized model has no trainable BatchNorm",
            stacklevel=5,
        )
        return
    weights, largest = qat.get_weights(), 0
    with AveragedStatistics(norms):
        try:
            with as_identity(training_only(qat)):
                forward = training_forward(qat)
                for x in batches:
                    forward([tf.constant(array) for array in x])
                    largest = max(largest, len(x[0]))
        finally:
            qat.set_weights(weights)
        if largest == 1:
            raise ValueError(
                "representative_data must hold batches of more than one example for reestimate. "
                "Received: batches of 1"
            )


def round_biases(qat: tf_keras.Model) -> None:
    """Moves every bias to the nearest value that the int32 biases of the file can hold, in place.

    By half a step of the accumulator at most, which is nothing by itself; but the one activation in
    a thousand that it rounds to the other side becomes one in five after thirty layers. A model
    with rounded biases computes what its file computes up to the order of float32 sums. The biases
    depend on the activation ranges: round them when the ranges are final.

    Args:
        qat: a calibrated or trained model from `quantize`.

    Raises:
        TypeError: `qat` does not come from `quantize`.
        ValueError: it has not seen data.
    """
    require_qat(qat)
    graph = IntegerGraph(qat)
    graph([tf.zeros((1, *tensor.shape[1:])) for tensor in qat.inputs])
    for name in graph.stored:
        # A layer with neither a bias nor a BatchNorm has nothing to round.
        add_to_output(qat.get_layer(name), graph.batch_norm_of(name), graph.bias_rounding(name))


def add_to_output(layer: Any, norm: Any, correction: np.ndarray) -> bool:
    """Adds to each output channel of a layer and its BatchNorm; False where nothing there can."""
    if norm is not None and norm.center:
        norm.beta.assign_add(correction.astype(np.float32))
    elif norm is not None:
        gain, _ = batch_norm_numbers(norm)
        gain = np.where(gain == 0.0, np.inf, gain)  # Such a channel has an output of zero.
        norm.moving_mean.assign_sub((correction / gain).astype(np.float32))
    elif layer.layer.use_bias:
        layer.layer.bias.assign_add(correction.astype(np.float32))
    else:
        return False
    return True
