"""Where the error of an integer file comes from, layer by layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)

from ehap_tf.data import as_dataset, only_array
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization.integer_rules.wrappers import unwrapped
from ehap_tf.quantization.tflite.evaluate import TFLiteModel, class_labels, classes
from ehap_tf.quantization.tflite.folding import filters_axis, fold
from ehap_tf.quantization.tflite.inputs import input_arrays, input_names
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph
from ehap_tf.quantization.tflite.output_grids import output_range, output_step

WORST_CHANNELS = 5


@dataclasses.dataclass(frozen=True)
class LayerQuality:
    """What quantization does to one layer.

    Signal-to-quantization-noise ratios are 10 log10(sum of squares / sum of squared errors), in
    decibels; each bit is worth about 6. `inf` means exact, NaN that there is nothing to compare.

    Attributes:
        name: of the layer in the QAT model, without its prefix.
        kind: class of the layer.
        weights_db: of its kernel, each weight against its unrounded value.
        output_db: of its quantized output, against the same network computing in float; the
            errors of all layers before it are in it.
        low: lower end of the output's range.
        high: upper end.
        worst_channels: (channel, decibels) of the output channels with the smallest ratios, worst
            first.
        worst_filters: the same of the output channels of the kernel, each the ratio of its median
            weight: one huge weight makes the steps so coarse that the others vanish, and hides that
            in their sum of squares.
    """

    name: str
    kind: str
    weights_db: float
    output_db: float
    low: float
    high: float
    worst_channels: tuple[tuple[int, float], ...]
    worst_filters: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """How close a QAT model and its file are to float, and where they lose it.

    Attributes:
        layers: one entry for every layer with a quantized kernel or output, in model order.
        examples: number of examples compared; of positions where each has a class.
        float_accuracy: top-1 of the float model.
        qat_accuracy: top-1 of the QAT model.
        file_accuracy: top-1 of the file.
        float_agreement: share of examples where the file and the float model say the same class.
        qat_agreement: share where the file and the QAT model do.
        largest_difference: between outputs of file and QAT model, in steps of the output.
    """

    layers: tuple[LayerQuality, ...]
    examples: int
    float_accuracy: float
    qat_accuracy: float
    file_accuracy: float
    float_agreement: float
    qat_agreement: float
    largest_difference: float

    def worst_layers(self, count: int = 5) -> list[LayerQuality]:
        """The layers whose outputs have the smallest ratios, worst first."""
        measured = [layer for layer in self.layers if not math.isnan(layer.output_db)]
        return sorted(measured, key=lambda layer: layer.output_db)[:count]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; ratios that are not finite numbers become None."""
        return _finite(dataclasses.asdict(self))


@either_keras(None)
def quantization_report(
    float_model: tf_keras.Model,
    qat: tf_keras.Model,
    file: str | os.PathLike[str],
    data: Any,
    *,
    batches: int = 4,
    threshold: float | None = None,
) -> QuantizationReport:
    """Compares a float model, its QAT model and its file on real data.

    The ratios compare the QAT model with itself, computing in float with the same weights, so that
    they show quantization alone, not what training has changed.

    Args:
        float_model: the model that was given to `quantize`.
        qat: what `quantize` returned, trained or not.
        file: the path of the TFLite file, or the `TFLiteFile`, exported from `qat`.
        data: `(x, y)` arrays or a batched `tf.data.Dataset`, preprocessed as for the model.
        batches: how many batches to compare.
        threshold: of a classifier with a single output, see `evaluate_tflite`.

    Raises:
        ValueError: the data is empty or of the wrong shape; the model has several outputs, or a
            single one without a threshold.
    """
    if len(qat.outputs) != 1:
        raise ValueError(f"qat must have one output. Received: {len(qat.outputs)} outputs")
    tflite, names = TFLiteModel(getattr(file, "path", file)), input_names(qat)
    outputs = _Ratios()
    predictions: dict[str, list[np.ndarray]] = {"float": [], "qat": [], "file": [], "label": []}
    largest = 0.0
    for x, y in itertools.islice(as_dataset(data), batches):
        arrays = input_arrays(qat, x)
        integer = _outputs(qat, arrays, rounding=True)
        outputs.add(_outputs(qat, arrays, rounding=False), integer)
        rows = {
            "float": only_array(float_model(x, training=False), "outputs"),
            "qat": only_array(qat(x, training=False), "outputs"),
            "file": tflite(dict(zip(names, arrays, strict=True))),
        }
        largest = max(largest, float(np.abs(rows["file"] - rows["qat"]).max()))
        for name, row in rows.items():
            predictions[name].append(classes(row, threshold))
        predictions["label"].append(class_labels(y, rows["qat"], threshold))
    said = {name: np.concatenate(parts) for name, parts in predictions.items()}

    def share(one: str, other: str) -> float:
        return float(np.mean(said[one] == said[other]))

    return QuantizationReport(
        layers=tuple(_layers(qat, outputs)),
        examples=len(said["label"]),
        float_accuracy=share("float", "label"),
        qat_accuracy=share("qat", "label"),
        file_accuracy=share("file", "label"),
        float_agreement=share("file", "float"),
        qat_agreement=share("file", "qat"),
        largest_difference=largest / output_step(qat),
    )


class _Ratios:
    """Sums of squares, of signals and of errors, by layer and channel."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, signals: dict[str, np.ndarray], quantized: dict[str, np.ndarray]) -> None:
        for name, signal in signals.items():
            axes = tuple(range(signal.ndim - 1))
            error = quantized[name] - signal
            sums = np.stack([np.square(signal).sum(axes), np.square(error).sum(axes)])
            self._sums[name] = self._sums.get(name, 0.0) + sums

    def total(self, name: str) -> float:
        return _decibels(*self._sums[name].sum(axis=1)) if name in self._sums else math.nan

    def worst(self, name: str) -> tuple[tuple[int, float], ...]:
        if name not in self._sums:
            return ()
        return _worst(_decibels(*pair) for pair in self._sums[name].T)


def _worst(ratios: Iterable[float]) -> tuple[tuple[int, float], ...]:
    order = sorted((r, c) for c, r in enumerate(ratios) if math.isfinite(r))
    return tuple((channel, ratio) for ratio, channel in order[:WORST_CHANNELS])


def worst_filters(wrapper: QuantizeWrapper) -> tuple[tuple[int, float], ...]:
    """See `LayerQuality`; of TFMOT's wrapper around a convolution or Dense."""
    kernels = [fold(wrapper, None, rounding) for rounding in (False, True)]
    exact, rounded = (kernel.values for kernel in kernels)
    channels = filters_axis(wrapper.layer, kernels[0].grouping)
    ratios = []
    for weights, error in zip(
        np.moveaxis(exact.astype(np.float64), channels, 0),
        np.moveaxis(rounded.astype(np.float64) - exact, channels, 0),
        strict=True,
    ):
        used = weights != 0.0
        signal = np.median(np.square(weights[used])) if used.any() else 0.0
        ratios.append(_decibels(signal, np.square(error[used]).sum() / max(1, used.sum())))
    return _worst(ratios)


def _layers(qat: tf_keras.Model, outputs: _Ratios) -> list[LayerQuality]:
    float_kernels = IntegerGraph(qat, rounding=False).kernels
    kernels = IntegerGraph(qat).kernels
    entries = []
    for layer in qat.layers:
        limits = output_range(layer)
        if limits is None and layer.name not in kernels:
            continue
        weights = math.nan
        filters: tuple[tuple[int, float], ...] = ()
        if layer.name in kernels:
            exact = float_kernels[layer.name].values.astype(np.float64)
            error = kernels[layer.name].values - exact
            weights = _decibels(np.square(exact).sum(), np.square(error).sum())
            filters = worst_filters(layer)
        inner = unwrapped(layer)
        low, high = limits or (math.nan, math.nan)
        entries.append(
            LayerQuality(
                name=inner.name,
                kind=type(inner).__name__,
                weights_db=weights,
                output_db=outputs.total(layer.name),
                low=low,
                high=high,
                worst_channels=outputs.worst(layer.name),
                worst_filters=filters,
            )
        )
    return entries


def _outputs(
    qat: tf_keras.Model, inputs: list[np.ndarray], rounding: bool
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def keep(layer: tf_keras.layers.Layer, x: tf.Tensor, y: tf.Tensor) -> None:
        del x
        if output_range(layer) is not None:
            # A layer's first call sets the grid; later ones round averages to it.
            found.setdefault(layer.name, y.numpy().astype(np.float64))

    IntegerGraph(qat, rounding, keep)([tf.cast(array, tf.float32) for array in inputs])
    return found


def _decibels(signal: float, error: float) -> float:
    if not error:
        return math.inf if signal else math.nan
    return 10.0 * math.log10(signal / error) if signal else -math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
