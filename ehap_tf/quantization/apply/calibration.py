"""Activation ranges of all calibration data, however it is batched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization.integer_rules.wrappers import require_qat, unwrapped
from ehap_tf.quantization.plan.quantizers import (
    CALIBRATED_BATCHES,
    SMALLEST_RANGE,
    EhapActivationQuantizer,
    range_with_zero,
)
from ehap_tf.quantization.tflite.inputs import input_batches
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph
from ehap_tf.quantization.tflite.output_grids import output_quantizer

CALIBRATION_EXAMPLES = 2048
"""Of the representative data, from its beginning: seconds of forward passes for most networks."""
BINS = 2**16
"""Of the histogram that percentiles are read from: as many steps as 16-bit integers have."""
FEWEST_BINS = 2**10
"""That the range between the percentiles spans: a quarter of a step of 8-bit integers each."""


@dataclasses.dataclass
class Activation:
    """The values of one quantized tensor, over all batches so far.

    Attributes:
        percentile: share in percent that the range is to hold.
        variables: of its quantizer: "min_var", "max_var", "batches".
        low: the smallest value, or the lower end of the histogram.
        high: the largest, or the upper end.
        counts: of the values in `BINS` equal bins from `low` to `high`, where percentiles are asked
            for; values beyond are in the first and in the last.
    """

    percentile: float
    variables: Mapping[str, tf.Variable]
    low: float = np.inf
    high: float = -np.inf
    counts: np.ndarray | int = 0

    def limits(self) -> tuple[float, float]:
        """The extremes, or the percentiles at both ends to half of a bin."""
        if not np.any(self.counts):
            return self.low, self.high
        share = (1.0 - self.percentile / 100.0) / 2.0
        below = np.cumsum(self.counts) / np.sum(self.counts)
        width = (self.high - self.low) / BINS
        first, last = (int(index) for index in np.searchsorted(below, (share, 1.0 - share)))
        return self.low + (first + 0.5) * width, self.low + (last + 0.5) * width

    def narrow(self) -> bool:
        """Brings the histogram to what is between the percentiles, if outliers left it few bins.

        Returns:
            Whether the values are to be counted again.
        """
        low, high = self.limits()
        width = (self.high - self.low) / BINS
        resolution = max(SMALLEST_RANGE, 1e-4 * max(abs(low), abs(high)))
        if high - low >= FEWEST_BINS * width or self.high - self.low <= resolution:
            return False
        self.low, self.high, self.counts = low - width, high + width, 0
        return True


@either_keras(None)
def calibrate(
    qat: tf_keras.Model, representative_data: Any, examples: int | None = CALIBRATION_EXAMPLES
) -> None:
    """Sets the activation ranges of a QAT model to those of representative data, in place.

    A range holds all values, or the share that the model was made with, of a forward pass with
    rounded kernels and unrounded activations: neither the batch size nor the order of the examples
    changes it. Weights and BatchNorm statistics stay. Ranges that were there before, of an earlier
    call or of training, are replaced. Training starts its moving average from the new ones, which
    count as a hundred batches.

    Args:
        qat: a model from `quantize`.
        representative_data: see `quantize`.
        examples: at most this many are read, from the beginning; None reads all of them.

    Raises:
        TypeError: `qat` does not come from `quantize`, or the data is of another form.
        ValueError: the data is empty, of the wrong shape, not finite, or a list of batches; an
            activation is not finite.
    """
    require_qat(qat)

    def batches() -> Iterator[list[np.ndarray]]:
        return input_batches(qat, representative_data, examples, "representative_data")

    activations = _activations(qat)
    measure = _measurement(qat, activations, _extremes)
    for x in batches():
        for name, (low, high) in measure(x).items():
            if not np.isfinite((low, high)).all():
                layer = unwrapped(qat.get_layer(name)).name
                raise ValueError(
                    f"layer {layer!r} computes NaN or infinite values of representative_data. "
                    f"Received: a range from {float(low):g} to {float(high):g}"
                )
            activation = activations[name]
            activation.low = min(activation.low, float(low))
            activation.high = max(activation.high, float(high))
    clipped = {n: a for n, a in activations.items() if a.percentile < 100.0 and a.low < a.high}
    while clipped:
        measure = _measurement(qat, clipped, _histogram)
        for x in batches():
            for name, counts in measure(x).items():
                clipped[name].counts = clipped[name].counts + counts.astype(np.int64)
        clipped = {name: activation for name, activation in clipped.items() if activation.narrow()}
    for activation in activations.values():
        low, high = range_with_zero(*activation.limits())
        activation.variables["min_var"].assign(low)
        activation.variables["max_var"].assign(high)
        activation.variables["batches"].assign(CALIBRATED_BATCHES)


def _activations(qat: tf_keras.Model) -> dict[str, Activation]:
    """What is to be measured, by the names of the layers."""
    found = {}
    for layer in qat.layers:
        quantizer, variables = output_quantizer(layer) or (None, {})
        if isinstance(quantizer, EhapActivationQuantizer):
            found[layer.name] = Activation(quantizer.percentile, variables)
    return found


def _extremes(values: tf.Tensor, activation: Activation) -> tf.Tensor:
    del activation
    return tf.stack([tf.reduce_min(values), tf.reduce_max(values)])


def _histogram(values: tf.Tensor, activation: Activation) -> tf.Tensor:
    return tf.histogram_fixed_width(values, (activation.low, activation.high), BINS)


def _measurement(
    qat: tf_keras.Model,
    activations: Mapping[str, Activation],
    reduce: Callable[[tf.Tensor, Activation], tf.Tensor],
) -> Callable[[list[np.ndarray]], dict[str, np.ndarray]]:
    """Returns a function from a batch to what `reduce` makes of each activation."""
    found: dict[str, np.ndarray] = {}

    def observe(layer: tf_keras.layers.Layer, x: tf.Tensor, y: tf.Tensor) -> None:
        del x
        # Averages that are rounded to a grid do not set it: the layer's first call does.
        if layer.name in activations and layer.name not in found:
            found[layer.name] = reduce(y, activations[layer.name]).numpy()

    graph = IntegerGraph(qat, rounding=False, observe=observe, round_kernels=True)

    def measure(x: list[np.ndarray]) -> dict[str, np.ndarray]:
        found.clear()
        # Eagerly: in a tf.function oneDNN takes a padding of channels into the convolution behind
        # it, which then has too few (TensorFlow 2.21), and batches of each size would be traced.
        graph([tf.constant(array) for array in x])
        return dict(found)

    return measure
