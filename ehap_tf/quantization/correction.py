"""BatchNorm and biases fitted to quantization, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.models import handing_on
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.batch_norm import batch_norms, inference_affine, training_only
from ehap_tf.quantization.folding import fold
from ehap_tf.quantization.integer_graph import IntegerGraph
from ehap_tf.quantization.registry import KERNELS
from ehap_tf.quantization.wrappers import require_qat, training_forward, unwrapped


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


def correct_biases(
    qat: tf_keras.Model, batches: Iterable[np.ndarray | Sequence[np.ndarray]]
) -> tuple[str, ...]:
    """Takes out the mean error that rounding the kernels adds to each output channel, in place.

    For a layer with kernel W, rounded to Q, the correction of an output channel is the mean of
    conv(x, W - Q) over the data, x being the layer's quantized input (Nagel et al., "Data-Free
    Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2, with measured
    instead of assumed inputs).

    Args:
        qat: a calibrated model from `quantize`.
        batches: inputs; a sequence of arrays where the model has several.

    Returns:
        The layers that could not be corrected, having neither a bias nor a BatchNorm.
    """
    probe = IntegerGraph(qat)
    errors = {}
    for layer in qat.layers:
        if layer_kind(unwrapped(layer)) in KERNELS:
            norm = probe.batch_norm_of(layer.name)
            exact, rounded = fold(layer, norm, rounding=False), fold(layer, norm)
            errors[layer.name] = exact.minus(rounded)
    sums = dict.fromkeys(errors, 0.0)
    examples = 0

    def measure(layer: tf_keras.layers.Layer, x: tf.Tensor, y: tf.Tensor) -> None:
        del y
        if layer.name in errors:
            lost = errors[layer.name].operate(layer.layer, x).numpy()
            means = lost.mean(axis=tuple(range(lost.ndim - 1)), dtype=np.float64)
            sums[layer.name] = sums[layer.name] + means * len(lost)

    graph = IntegerGraph(qat, observe=measure)
    for x in batches:
        arrays = tf.nest.flatten(x)
        graph([tf.constant(array) for array in arrays])
        examples += len(arrays[0])
    skipped = []
    for name, total in sums.items():
        correction = np.asarray(total / examples)
        if not _add_to_output(qat.get_layer(name), probe.batch_norm_of(name), correction):
            skipped.append(name)
    return tuple(skipped)


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
        _add_to_output(qat.get_layer(name), graph.batch_norm_of(name), graph.bias_rounding(name))


def _add_to_output(layer: Any, norm: Any, correction: np.ndarray) -> bool:
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
