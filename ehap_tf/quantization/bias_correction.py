"""Mean errors of quantization, taken out of the biases layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import replay
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.calibration import CALIBRATION_EXAMPLES
from ehap_tf.quantization.correction import add_to_output
from ehap_tf.quantization.integer_graph import IntegerGraph
from ehap_tf.quantization.registry import KERNELS
from ehap_tf.quantization.wrappers import unwrapped

BATCH = 64
"""Examples that are computed at once."""
LARGEST_TENSOR = 2**24
"""Floats of one tensor over all examples: 64 MB, of which a network has some alive at a time."""
FEWEST_EXAMPLES = 4
"""Of inputs so large that more would not fit; their means are over many positions."""


def correction_examples(qat: tf_keras.Model) -> int:
    """How many examples `correct_biases` can hold the activations of."""
    shapes = [y.shape[1:] for layer in qat.layers for y in tf.nest.flatten(layer.get_output_at(0))]
    largest = max(int(np.prod([size or 1 for size in shape])) for shape in shapes)
    return max(FEWEST_EXAMPLES, min(CALIBRATION_EXAMPLES, LARGEST_TENSOR // largest))


@dataclasses.dataclass
class _Sides:
    """A tensor of both networks, in batches."""

    exact: list[tf.Tensor]
    rounded: list[tf.Tensor]


def correct_biases(qat: tf_keras.Model, inputs: Sequence[np.ndarray]) -> tuple[str, ...]:
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
            memory, see `correction_examples`.

    Returns:
        The layers that could not be corrected, having neither a bias nor a BatchNorm.
    """
    walker = _Walker(qat)
    batches = -(-len(inputs[0]) // BATCH)
    sides = []
    for array in inputs:
        parts = [tf.constant(part) for part in np.array_split(array, batches)]
        sides.append(_Sides(parts, parts))
    weights, graph = qat.get_weights(), IntegerGraph(qat)
    uncorrected = [graph(list(batch)) for batch in zip(*(s.exact for s in sides), strict=True)]
    outputs = replay(qat, sides, walker.visit)
    before = zip(*uncorrected, strict=True)
    if sum(_relative_error(y.exact, y.rounded) for y in outputs) > sum(
        _relative_error(y.exact, old) for y, old in zip(outputs, before, strict=True)
    ):
        qat.set_weights(weights)
    return tuple(walker.skipped)


def _relative_error(exact: Sequence[tf.Tensor], rounded: Sequence[tf.Tensor]) -> float:
    """The squared error of an output, of the square of what it should be."""
    error = sum(
        float(tf.reduce_sum(tf.square(one - other)))
        for one, other in zip(exact, rounded, strict=True)
    )
    return error / max(sum(float(tf.reduce_sum(tf.square(y))) for y in exact), 1e-30)


class _Walker:
    """Computes call by call what both networks do, and corrects on the way."""

    def __init__(self, qat: tf_keras.Model) -> None:
        self._exact = IntegerGraph(qat, rounding=False)
        self._rounded = IntegerGraph(qat)
        self.skipped: list[str] = []

    def visit(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if layer_kind(unwrapped(layer)) in KERNELS:
            self._correct(layer, args[0])
        exact = _compute(self._exact, layer, args, kwargs, "exact")
        rounded = _compute(self._rounded, layer, args, kwargs, "rounded")
        flat = [
            _Sides(list(ours), list(theirs))
            for ours, theirs in zip(
                zip(*(tf.nest.flatten(y) for y in exact), strict=True),
                zip(*(tf.nest.flatten(y) for y in rounded), strict=True),
                strict=True,
            )
        ]
        return tf.nest.pack_sequence_as(exact[0], flat)

    def _correct(self, layer: Any, x: _Sides) -> None:
        """Adds the correction of a convolution or Dense to its bias, if it helps."""
        name = layer.name
        exact = [self._exact.products(layer, part) for part in x.exact]
        rounded = [self._rounded.products(layer, part) for part in x.rounded]
        correction = _mean_error(exact, rounded)
        if not correction.any():
            return
        wanted = [self._stored(self._exact, layer, y) for y in exact]

        def error(added: np.ndarray | float) -> float:
            pairs = zip(wanted, rounded, strict=True)
            return sum(
                float(tf.reduce_sum(tf.square(self._stored(self._rounded, layer, y + added) - one)))
                for one, y in pairs
            )

        if error(correction) >= error(0.0):
            return
        own = self._rounded.own_channels(name, correction)
        if not add_to_output(layer, self._rounded.batch_norm_of(name), own):
            self.skipped.append(name)
            return
        kernel = self._rounded.kernels[name]
        self._rounded.kernels[name] = dataclasses.replace(kernel, bias=kernel.bias + correction)

    @staticmethod
    def _stored(graph: IntegerGraph, layer: Any, y: tf.Tensor) -> tf.Tensor:
        """What is stored of a layer's products: after its activation function, on its grid."""
        y = graph.on_grid(layer.name, y)
        for behind in graph.behind(layer.name):
            y = graph.compute(behind, (y,), {})
        return y


def _compute(graph: IntegerGraph, layer: Any, args: Any, kwargs: Any, side: str) -> list[Any]:
    """What a call of `layer` gives on one side, for each batch."""
    values = [v for v in tf.nest.flatten((args, kwargs)) if isinstance(v, _Sides)]
    results = []
    for batch in range(len(getattr(values[0], side))):

        def of_batch(value: Any, batch: int = batch) -> Any:
            return getattr(value, side)[batch] if isinstance(value, _Sides) else value

        batch_args, batch_kwargs = tf.nest.map_structure(of_batch, (args, kwargs))
        results.append(graph.compute(layer, batch_args, batch_kwargs))
    return results


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
