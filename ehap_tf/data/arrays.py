"""The data that callers bring: arrays or a batched tf.data.Dataset, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

DEFAULT_BATCH_SIZE = 128


def as_dataset(data: Any, batch_size: int | None = None) -> tf.data.Dataset:
    """Makes a finite stream of batches of what the caller has.

    Args:
        data: (x, y) arrays with the examples along the first axis, or a batched, finite
            tf.data.Dataset of (x, y).
        batch_size: of arrays 128 when None; a Dataset keeps its batches when None, and is batched
            anew otherwise.

    Returns:
        Batches of (x, y), in the order of `data`, the last one possibly smaller.

    Raises:
        TypeError: neither of the two.
        ValueError: empty, endless, without labels, or of unequal lengths.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")
    if isinstance(data, tf.data.Dataset):
        return _checked(data, batch_size)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            "data must be a pair (x, y) of arrays or a batched tf.data.Dataset of such pairs. "
            f"Received: {_described(data)}"
        )
    x, y = (_structure(part) for part in data)
    lengths = [_length(array) for array in tf.nest.flatten((x, y))]
    if min(lengths) == 0:
        raise ValueError("data is empty: x and y hold 0 examples")
    if len(set(lengths)) > 1:
        raise ValueError(f"x and y must have as many examples. Received: {lengths}")
    with tf.device("/cpu:0"):
        stream = tf.data.Dataset.from_tensor_slices((x, y))
    return stream.batch(batch_size or DEFAULT_BATCH_SIZE)


def check_labels(labels: Any, num_classes: int) -> None:
    """Checks that integer labels name classes.

    Raises:
        ValueError: labels that are not whole numbers, or outside 0 to num_classes - 1.
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise ValueError("labels are empty: there are no examples")
    if labels.dtype.kind not in "iu" and not np.array_equal(labels, np.floor(labels)):
        raise ValueError(f"labels must be whole numbers. Received: {labels.dtype} with fractions")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be in 0 to {num_classes - 1}, for {num_classes} classes. "
            f"Received: {low} to {high}"
        )


def _checked(dataset: tf.data.Dataset, batch_size: int | None) -> tf.data.Dataset:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"data must be a tf.data.Dataset of pairs (x, y). Received: elements {spec}"
        )
    for part in tf.nest.flatten(spec):
        if part.shape.rank == 0:
            raise ValueError(
                "data must be a batched tf.data.Dataset: call .batch(size) on it. "
                f"Received: elements {spec}"
            )
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "data is an endless tf.data.Dataset. Take a part of it: data.take(batches)"
        )
    empty = cardinality == 0
    if cardinality == tf.data.UNKNOWN_CARDINALITY:
        empty = next(iter(dataset.take(1)), None) is None
    if empty:
        raise ValueError("data is empty: the tf.data.Dataset has no batch")
    return dataset if batch_size is None else dataset.rebatch(batch_size)


def _structure(part: Any) -> Any:
    """Keras takes a list of arrays for several inputs or outputs; tf.data wants a tuple."""
    if isinstance(part, list) and part and all(isinstance(a, np.ndarray | tf.Tensor) for a in part):
        return tuple(part)
    return part


def _length(array: Any) -> int:
    shape = np.shape(array)
    if not shape:
        raise ValueError(f"x and y must be arrays of examples. Received: the scalar {array!r}")
    return int(shape[0])


def _described(data: Any) -> str:
    kind = type(data).__name__
    return f"{kind} of {len(data)}" if isinstance(data, (tuple, list)) else kind
