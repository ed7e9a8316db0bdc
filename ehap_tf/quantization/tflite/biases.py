"""Biases that the file can hold, and what is added to the mean of an output."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import batch_norm_numbers
from ehap_tf.quantization.integer_rules.wrappers import require_qat
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph


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
