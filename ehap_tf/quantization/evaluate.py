"""A TFLite file at work: its accuracy and its latency."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.quantization.tflite_file import TensorSpec, open_interpreter, tensor_spec

PROGRESS_EVERY = 250
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
            integers), and integer class labels.
        threads: of the interpreter.
        progress: called as `progress(examples_done, examples, {"accuracy": so_far})`; the number
            of examples is 0 when the dataset does not tell.

    Returns:
        The share of examples whose largest output is their label, in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
        ValueError: the inputs have another shape than the file takes, or there are none.
    """
    model = TFLiteModel(path, threads)
    correct = done = 0
    total = _number_of_examples(data)
    for x, y in _batches(data):
        predictions = model(x).reshape(len(x), -1).argmax(axis=1)
        correct += int((predictions == y).sum())
        done += len(x)
        progress(done, total, {"accuracy": correct / done})
    if not done:
        raise ValueError("data is empty: there is nothing to evaluate.")
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


def _batches(data: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if isinstance(data, tf.data.Dataset):
        if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise ValueError("data never ends: give a finite dataset, for example data.take(n).")
        for x, y in data.as_numpy_iterator():
            yield np.asarray(x, np.float32), np.ravel(y)
        return
    x, y = data
    if len(x) != len(y):
        raise ValueError(f"x and y must be of one length. Received: {len(x)} and {len(y)}")
    for start in range(0, len(x), PROGRESS_EVERY):
        part = slice(start, start + PROGRESS_EVERY)
        yield np.asarray(x[part], np.float32), np.ravel(y[part])
