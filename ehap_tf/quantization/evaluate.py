"""A TFLite file at work: its accuracy and its latency."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.data import as_dataset
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.quantization.tflite_file import TensorSpec, open_interpreter, tensor_spec

LARGEST_SHARE_OUTSIDE = 0.5
"""Of input values beyond the range of the file's integers; calibration leaves a percent or so."""
SMALLEST_SPAN = 0.02
"""Of a batch's values, as a share of that range."""
WARM_UP_SECONDS = 0.2


class TFLiteModel:
    """A TFLite file that is called with float inputs and returns float outputs.

    Args:
        path: of a file that takes one example at a time.
        threads: of the interpreter.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self._interpreter = open_interpreter(path, threads)
        input_details = self._interpreter.get_input_details()[0]
        output_details = self._interpreter.get_output_details()[0]
        self._input_index = input_details["index"]
        self._output_index = output_details["index"]
        self.input = tensor_spec(input_details)
        self.output = tensor_spec(output_details)

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """Returns the outputs for a batch of examples, float32, computed one by one.

        Args:
            examples: float, (batch, ...), preprocessed as for the float model.

        Raises:
            ValueError: the examples have another shape than the file takes.
        """
        if examples.shape[1:] != self.input.shape[1:]:
            raise ValueError(
                f"the file takes inputs of shape {self.input.shape[1:]}. Received: examples of "
                f"shape {examples.shape[1:]}"
            )
        outputs = [self._run(example) for example in to_integers(examples, self.input)]
        return from_integers(np.stack(outputs), self.output)

    def _run(self, example: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input_index, example[None])
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output_index)[0]

    def run_once(self) -> None:
        """Runs the file on whatever its input holds."""
        self._interpreter.invoke()


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


def evaluate_tflite(
    path: str | os.PathLike[str],
    data: Any,
    *,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> float:
    """Top-1 accuracy of a TFLite file.

    Args:
        path: of the file.
        data: `(x, y)` arrays or a batched `tf.data.Dataset` of (inputs, labels): float inputs,
            preprocessed as for the float model (the file's own scale and zero point turn them into
            integers), and class labels, integer or one-hot.
        threads: of the interpreter.
        progress: called as `progress(examples_done, examples, {"accuracy": so_far})`; the number
            of examples is 0 when the dataset does not tell.

    Returns:
        The share of examples whose largest output is their label, in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
        ValueError: the inputs have another shape or another range of values than the file takes,
            or there are none.
    """
    model = TFLiteModel(path, threads)
    correct = done = 0
    total = _number_of_examples(data)
    for x, y in as_dataset(data):
        x = np.asarray(x, np.float32)
        outputs = model(x).reshape(len(x), -1)
        if not done:
            _check_range(x, model.input)
        correct += int((outputs.argmax(axis=1) == _check_labels(np.asarray(y), outputs)).sum())
        done += len(x)
        progress(done, total, {"accuracy": correct / done})
    return correct / done


def measure_latency_ms(path: str | os.PathLike[str], threads: int = 1, runs: int = 200) -> float:
    """Median time of one inference in the LiteRT interpreter with XNNPACK, in milliseconds.

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
    shape = (1, *model.input.shape[1:])
    model(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
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
    return 0 if isinstance(data, tf.data.Dataset) else len(data[0])


def _check_range(x: np.ndarray, spec: TensorSpec) -> None:
    """Refuses inputs that were preprocessed in another way than those of the calibration."""
    if not spec.scale:
        return
    limits = np.iinfo(spec.dtype)
    low, high = from_integers(np.asarray([limits.min, limits.max]), spec)
    outside = float(np.mean((x < low - spec.scale) | (x > high + spec.scale)))
    span = float(x.max() - x.min())
    if outside > LARGEST_SHARE_OUTSIDE or 0.0 < span < SMALLEST_SPAN * (high - low):
        raise ValueError(
            f"data is in another range than the file's: its inputs hold values from {low:.4g} to "
            f"{high:.4g}. Received: values from {x.min():.4g} to {x.max():.4g}, {outside:.0%} of "
            "them outside. Preprocess the data as for the float model."
        )


def _check_labels(y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    if y.shape == outputs.shape and y.shape[1] > 1:
        return y.argmax(axis=1)
    labels = np.ravel(y)
    if len(labels) != len(outputs):
        raise ValueError(
            "labels must be one class number for each example, or one-hot. Received: labels of "
            f"shape {y.shape} for {len(outputs)} examples and {outputs.shape[1]} outputs"
        )
    return labels
