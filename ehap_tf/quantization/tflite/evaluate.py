"""A TFLite file at work: its accuracy and its latency."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.data import as_arrays, as_dataset, example_weights, only_array
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.quantization.tflite.tflite_file import (
    TensorSpec,
    open_interpreter,
    quantized,
    signature,
    tensor_spec,
)

LARGEST_SHARE_OUTSIDE = 0.5
"""Of input values beyond the range of the file's integers; calibration leaves a percent or so."""
FAR_SPANS, LARGEST_SHARE_FAR = 4.0, 0.02
"""Of input values that lie beyond it by as many times its width: the bright pixels, which may be
few, of images that were not divided by 255."""
SMALLEST_SPAN = 0.02
"""Of the values, as a share of that range."""
WARM_UP_SECONDS = 0.2


class TFLiteModel:
    """A TFLite file that is called with float inputs and returns float outputs.

    Args:
        path: of a file that takes one example at a time.
        threads: of the interpreter.
        reference: compute with TFLite's reference kernels.

    Attributes:
        inputs: the inputs by name.
        outputs: the outputs in the model's order.
        input_places: of the inputs among those of the file, which has its own order.
        output_places: of the outputs, likewise.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int = 1, *, reference: bool = False
    ) -> None:
        self._path = path
        self._interpreter = open_interpreter(path, threads, reference=reference)
        inputs, outputs = signature(self._interpreter)
        self.inputs = {name: tensor_spec(details) for name, details in inputs.items()}
        self.outputs = [tensor_spec(details) for details in outputs]
        self._input_indices = [details["index"] for details in inputs.values()]
        self._output_indices = [details["index"] for details in outputs]
        self.input_places = _places(self._input_indices, self._interpreter.get_input_details())
        self.output_places = _places(self._output_indices, self._interpreter.get_output_details())

    def __call__(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> Any:
        """Returns the outputs for a batch of examples, float32, computed one by one.

        Args:
            examples: float, (batch, ...), preprocessed as for the float model; for a file with
                several inputs such arrays by the inputs' names.

        Returns:
            An array; for a file with several outputs a list of arrays, in the model's order.

        Raises:
            ValueError: the examples are not what the file takes: other inputs, or another shape.
        """
        rows = [self.run(*example) for example in zip(*self.as_integers(examples), strict=True)]
        outputs = [
            from_integers(np.stack(column), spec)
            for column, spec in zip(zip(*rows, strict=True), self.outputs, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    def by_name(self, examples: Any) -> dict[str, np.ndarray]:
        """Returns the arrays of `examples` by the names of the file's inputs.

        Raises:
            ValueError: the examples are those of other inputs.
        """
        if len(self.inputs) == 1 and not isinstance(examples, Mapping):
            examples = dict.fromkeys(self.inputs, examples)
        if not isinstance(examples, Mapping) or set(examples) != set(self.inputs):
            received = (
                sorted(examples) if isinstance(examples, Mapping) else type(examples).__name__
            )
            raise ValueError(
                "the file does not keep the order of its inputs: give a dict of arrays with the "
                f"keys {sorted(self.inputs)}. Received: {received}"
            )
        return {name: np.asarray(array, np.float32) for name, array in examples.items()}

    def integer_inputs(self) -> dict[str, TensorSpec]:
        """The inputs as integers, by name: a float32 input as the file's QUANTIZE writes it.

        One that the file computes with in floating point is left out.
        """
        written = quantized(self._path)
        specs = {
            name: spec if spec.scale else written.get(index)
            for (name, spec), index in zip(self.inputs.items(), self._input_indices, strict=True)
        }
        return {name: spec for name, spec in specs.items() if spec}

    def as_integers(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Examples as `run` takes them: (batch, ...) for each input, in the order of `inputs`.

        Raises:
            ValueError: see `__call__`.
        """
        by_name = self.by_name(examples)
        for name, spec in self.inputs.items():
            if by_name[name].shape[1:] != spec.shape[1:]:
                raise ValueError(
                    f"the file takes inputs of shape {spec.shape[1:]}. Received: examples of "
                    f"shape {by_name[name].shape[1:]}"
                )
        return [to_integers(by_name[name], spec) for name, spec in self.inputs.items()]

    def run(self, *example: np.ndarray) -> list[np.ndarray]:
        """The outputs of one example as the file computes them, integers, without a batch axis."""
        for index, value in zip(self._input_indices, example, strict=True):
            self._interpreter.set_tensor(index, value[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index)[0] for index in self._output_indices]

    def run_once(self) -> None:
        """Runs the file on whatever its inputs hold."""
        self._interpreter.invoke()


def _places(indices: list[int], details: list[Mapping[str, Any]]) -> list[int]:
    return [[one["index"] for one in details].index(index) for index in indices]


def to_integers(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Quantizes float values as the tensor `spec` wants them: round, shift, saturate."""
    if not spec.scale:
        return values.astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    integers = np.rint(values / spec.scale) + spec.zero_point
    return np.clip(integers, limits.min, limits.max).astype(spec.dtype)


def from_integers(integers: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The real values, float32, that integers of the tensor `spec` stand for."""
    if not spec.scale:
        return integers.astype(np.float32)
    return ((integers.astype(np.float32) - spec.zero_point) * spec.scale).astype(np.float32)


def classes(outputs: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """The classes that outputs stand for, as a vector: each the index of the largest output.

    Args:
        outputs: (batch, ..., outputs).
        threshold: above which an output means 1 instead of 0: the class of a single output, of
            several (labels that do not exclude each other) each for itself.

    Raises:
        ValueError: there is a single output and no threshold.
    """
    if threshold is not None:
        return np.ravel(outputs > threshold).astype(np.int64)
    if outputs.shape[-1] > 1:
        return np.ravel(outputs.argmax(axis=-1))
    raise ValueError(
        "threshold is needed for a model with a single output, which has no largest one: 0.5 "
        "for a probability (a sigmoid), 0.0 for a logit. Received: None"
    )


@either_keras(None)
def evaluate_tflite(
    path: str | os.PathLike[str],
    data: Any,
    *,
    threads: int = 1,
    threshold: float | None = None,
    progress: ProgressCallback = no_progress,
) -> float:
    """Top-1 accuracy of a TFLite file.

    Args:
        path: of the file.
        data: `(x, y)` or `(x, y, sample_weight)` arrays or a batched `tf.data.Dataset` of such
            tuples: float inputs, preprocessed as for the float model (the file's own scale and
            zero point turn them into integers), and class labels, integer or one-hot. Several
            inputs are a dict. Weights count as in Keras' `weighted_metrics`.
        threads: of the interpreter.
        threshold: of a classifier with a single output, which must be given one: its class is 1
            above it, 0.5 for a probability and 0.0 for a logit. With several outputs it means
            labels that do not exclude each other, 0 or 1 for each, and the share of right ones is
            what is returned.
        progress: called as `progress(examples_done, examples, {"accuracy": so_far})`; the number
            of examples is 0 when the dataset does not tell.

    Returns:
        The share of examples whose class, that of the largest output, is their label, in [0, 1];
        of positions where each of them has a class, as in segmentation; of the weight where
        examples have weights, NaN while all of them are zero.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
        ValueError: the inputs have another shape or another range of values than the file takes,
            or there are none; the file has several outputs, or a single one without a threshold.
    """
    model = TFLiteModel(path, threads)
    if len(model.outputs) != 1:
        raise ValueError(
            f"the file must have one output to be scored. Received: {len(model.outputs)} outputs. "
            "Call TFLiteModel(path) and score each of what it returns."
        )
    ranges = {name: _InputRange(spec) for name, spec in model.integer_inputs().items()}
    score, done = Accuracy(), 0
    total = _number_of_examples(data)
    for x, y, *weights in as_dataset(data, weighted=True):
        examples = model.by_name(x)
        for name, seen in ranges.items():
            seen.add(examples[name])
        outputs = model(examples)
        score.add(classes(outputs, threshold), class_labels(y, outputs, threshold), *weights)
        done += len(outputs)
        progress(done, total, {"accuracy": score.result()})
    for seen in ranges.values():
        seen.require()
    return score.result()


def measure_latency_ms(path: str | os.PathLike[str], threads: int = 1, runs: int = 200) -> float:
    """Median time of one inference in the LiteRT interpreter with XNNPACK, in milliseconds.

    Without XNNPACK, and with a warning, where that does not take the file.

    Args:
        path: of the file.
        threads: of the interpreter.
        runs: inferences to take the median of, after a warm-up of a fifth of a second.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
        ValueError: `threads` or `runs` is not positive.
    """
    for name, value in (("threads", threads), ("runs", runs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {value!r}")
    model = TFLiteModel(path, threads)
    noise = np.random.default_rng(0)
    model({name: noise.standard_normal(spec.shape) for name, spec in model.inputs.items()})
    until = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < until:
        model.run_once()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        model.run_once()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _number_of_examples(data: Any) -> int:
    return 0 if isinstance(data, tf.data.Dataset) else len(tf.nest.flatten(as_arrays(data[1]))[0])


class Accuracy:
    """The share of right classes so far: of numbers, or of the weights of their examples."""

    def __init__(self) -> None:
        self._right = self._whole = 0.0

    def add(self, predictions: np.ndarray, labels: np.ndarray, weights: Any = None) -> None:
        """Counts the classes of a batch.

        Args:
            predictions: one class per example, or per position of the examples in order.
            labels: of the same length.
            weights: one number per example; None stands for 1.

        Raises:
            ValueError: the weights are not such numbers.
        """
        each = np.ones(len(labels)) if weights is None else example_weights(weights)
        each = np.repeat(each, len(labels) // len(each)).astype(np.float64)
        self._right += float(each[predictions == labels].sum())
        self._whole += float(each.sum())

    def result(self) -> float:
        """In [0, 1]; NaN while nothing has a weight above zero."""
        return self._right / self._whole if self._whole else float("nan")


class _InputRange:
    """Refuses inputs that were preprocessed in another way than those of the calibration.

    All batches are judged together: the first may be a single grey image, or hold the largest of
    values that were sorted.
    """

    def __init__(self, spec: TensorSpec) -> None:
        limits = np.iinfo(spec.dtype)
        self._low, self._high = from_integers(np.asarray([limits.min, limits.max]), spec)
        self._step, self._far = spec.scale, FAR_SPANS * (self._high - self._low)
        self._is_number = np.prod(spec.shape[1:]) == 1
        self._smallest, self._largest = np.inf, -np.inf
        self._values = self._outside = self._far_outside = 0

    def add(self, x: np.ndarray) -> None:
        """Looks at a batch.

        Raises:
            ValueError: it has NaN or infinite values.
        """
        wrong = np.count_nonzero(~np.isfinite(x))
        if wrong:
            raise ValueError(f"data must be finite. Received: {wrong} NaN or infinite inputs")
        self._smallest = min(self._smallest, float(x.min()))
        self._largest = max(self._largest, float(x.max()))
        self._values += x.size
        self._outside += self._beyond(x, self._step)
        self._far_outside += self._beyond(x, self._far)

    def require(self) -> None:
        """Checks what was added.

        Raises:
            ValueError: most of it lies outside, or some of it far outside, or, of more than single
                numbers (which may not vary much), it fills next to nothing of the range.
        """
        outside, span = self._outside / self._values, self._largest - self._smallest
        is_far = self._far_outside > LARGEST_SHARE_FAR * self._values
        is_narrow = 0.0 < span < SMALLEST_SPAN * (self._high - self._low) and not self._is_number
        if outside > LARGEST_SHARE_OUTSIDE or is_far or is_narrow:
            raise ValueError(
                "data is in another range than the file's: its inputs hold values from "
                f"{self._low:.4g} to {self._high:.4g}. Received: values from {self._smallest:.4g} "
                f"to {self._largest:.4g}, {outside:.0%} of them outside. Preprocess the data as "
                "for the float model."
            )

    def _beyond(self, x: np.ndarray, margin: float) -> int:
        """How many values lie outside by more than the margin."""
        return int(np.count_nonzero((x < self._low - margin) | (x > self._high + margin)))


def class_labels(y: Any, outputs: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Class numbers of labels that are such, or one-hot as the outputs are, as a vector.

    Args:
        y: an array or tensor, also in a dict or list of its own.
        outputs: (batch, ..., outputs) of the only output.
        threshold: as for `classes`: labels as the outputs are stay as they are with one.

    Raises:
        ValueError: they do not fit the outputs.
    """
    y = only_array(y, "labels")
    if threshold is not None and y.shape == outputs.shape:
        return np.ravel(y)
    if y.shape == outputs.shape and y.shape[-1] > 1:
        return np.ravel(y.argmax(axis=-1))
    labels = np.ravel(y)
    if len(labels) * outputs.shape[-1] != outputs.size:
        raise ValueError(
            "labels must be one class number for each example, or one-hot. Received: labels of "
            f"shape {y.shape} for outputs of shape {outputs.shape}"
        )
    return labels
