"""Mean errors of quantization, taken out of the biases layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.quantization.apply.side_by_side import Mend, SideBySide, Sides, batched
from ehap_tf.quantization.tflite.biases import add_to_output
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph


def correct_biases(
    qat: tf_keras.Model, inputs: Sequence[np.ndarray], before: Sequence[Mend] = ()
) -> tuple[str, ...]:
    """Takes out the mean error that quantization leaves in each output channel, in place.

    Walks the network in integers and the same network in float side by side. A layer's correction
    is the mean over the data of what its float outputs are above its integer ones, before the
    activation function; the layers before it are corrected already, so that their errors count but
    once (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
    2019, section 4.2 and appendix D, with measured inputs). Each channel's mean is shrunk by its
    sampling error. A layer keeps its correction where the mean squared error of its output, after
    the activation function and on the file's grid, is smaller with it; all of them are taken back
    where the model's outputs are farther from the float ones with them, because errors that
    cancelled no longer do.

    Args:
        qat: a calibrated model from `quantize`.
        inputs: one array for each input of the model; the activations of all examples are held in
            memory, see `examples_in_memory`.
        before: what else is to be changed of each layer, before its bias is corrected; it stays.

    Returns:
        The layers that could not be corrected, having neither a bias nor a BatchNorm.
    """
    kernels = {id(one) for layer in qat.layers for one, *_ in getattr(layer, "_weight_vars", ())}
    biases = [(weight, weight.numpy()) for weight in qat.weights if id(weight) not in kernels]
    correction = _BiasCorrection()
    outputs = SideBySide(qat).walk(inputs, [*before, correction])
    corrected = [weight.numpy() for weight, _ in biases]
    for weight, value in biases:
        weight.assign(value)
    graph = IntegerGraph(qat)
    uncorrected = [graph(list(batch)) for batch in zip(*batched(inputs), strict=True)]
    old_outputs = zip(*uncorrected, strict=True)
    if sum(_relative_error(y.exact, y.rounded) for y in outputs) <= sum(
        _relative_error(y.exact, old) for y, old in zip(outputs, old_outputs, strict=True)
    ):
        for (weight, _), value in zip(biases, corrected, strict=True):
            weight.assign(value)
    return tuple(correction.skipped)


def _relative_error(exact: Sequence[tf.Tensor], rounded: Sequence[tf.Tensor]) -> float:
    """The squared error of an output, of the square of what it should be."""
    error = sum(
        float(tf.reduce_sum(tf.square(one - other)))
        for one, other in zip(exact, rounded, strict=True)
    )
    return error / max(sum(float(tf.reduce_sum(tf.square(y))) for y in exact), 1e-30)


class _BiasCorrection:
    """The correction of one layer after the other; `skipped` are those that have no bias."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def __call__(self, both: SideBySide, layer: Any, x: Sides) -> None:
        """Adds the correction of a convolution or Dense to its bias, if it helps."""
        name = layer.name
        exact = [both.exact.products(layer, part) for part in x.exact]
        rounded = [both.rounded.products(layer, part) for part in x.rounded]
        correction = _mean_error(exact, rounded)
        if not correction.any():
            return
        wanted = [_stored(both.exact, layer, y) for y in exact]

        def error(added: np.ndarray | float) -> float:
            pairs = zip(wanted, rounded, strict=True)
            return sum(
                float(tf.reduce_sum(tf.square(_stored(both.rounded, layer, y + added) - one)))
                for one, y in pairs
            )

        if error(correction) >= error(0.0):
            return
        own = both.rounded.own_channels(name, correction)
        if not add_to_output(layer, both.rounded.batch_norm_of(name), own):
            self.skipped.append(name)
            return
        kernel = both.rounded.kernels[name]
        both.rounded.kernels[name] = dataclasses.replace(kernel, bias=kernel.bias + correction)


def _stored(graph: IntegerGraph, layer: Any, y: tf.Tensor) -> tf.Tensor:
    """What is stored of a layer's products: after its activation function, on its grid."""
    y = graph.on_grid(layer.name, y)
    for behind in graph.behind(layer.name):
        y = graph.compute(behind, (y,), {})
    return y


def _mean_error(exact: list[tf.Tensor], rounded: list[tf.Tensor]) -> np.ndarray:
    """The mean of `exact - rounded` in each channel, shrunk by its sampling error, float32.

    With n examples whose means are e_i, of mean e and of variance s^2, it is
    e max(0, 1 - s^2 / (n e^2)): what of e^2 the sampling would give by itself is no error.
    """
    means = np.concatenate(
        [
            tf.reduce_mean(one - other, axis=list(range(1, one.shape.rank - 1))).numpy()
            for one, other in zip(exact, rounded, strict=True)
        ]
    ).astype(np.float64)
    mean = means.mean(axis=0)
    if len(means) == 1:
        return mean.astype(np.float32)
    noise = means.var(axis=0, ddof=1) / len(means)
    square = np.maximum(np.square(mean), np.finfo(np.float64).tiny)
    return (mean * np.maximum(0.0, 1.0 - noise / square)).astype(np.float32)
