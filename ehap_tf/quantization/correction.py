"""BatchNorm and biases fitted to quantization, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.models import handing_on
from ehap_tf.quantization.batch_norm import batch_norms, inference_affine, training_only
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
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # The moving statistics are then those of the newest batch.
    weights, sizes, history = qat.get_weights(), [], []
    try:
        with handing_on(training_only(qat)):
            forward = training_forward(qat)
            for x in batches:
                forward([tf.constant(array) for array in x])
                sizes.append(len(x[0]))
                history.append([s.numpy() for norm in norms for s in _statistics(norm)])
    finally:
        qat.set_weights(weights)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if max(sizes) == 1:
        raise ValueError(
            "representative_data must hold batches of more than one example for reestimate. "
            "Received: batches of 1"
        )
    variables = [statistic for norm in norms for statistic in _statistics(norm)]
    for variable, values in zip(variables, zip(*history, strict=True), strict=True):
        variable.assign(np.average(values, axis=0, weights=sizes))


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
        gain, _ = inference_affine(norm, len(correction))
        gain = np.where(gain == 0.0, np.inf, gain)  # Such a channel has an output of zero.
        norm.moving_mean.assign_sub((correction / gain).astype(np.float32))
    elif layer.layer.use_bias:
        layer.layer.bias.assign_add(correction.astype(np.float32))
    else:
        return False
    return True


def _statistics(norm: tf_keras.layers.BatchNormalization) -> list[tf.Variable]:
    return [norm.moving_mean, norm.moving_variance]
