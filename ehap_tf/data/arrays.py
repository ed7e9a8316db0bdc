"""The data that callers bring: arrays or a batched tf.data.Dataset, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

DEFAULT_BATCH_SIZE = 128

ENDLESS = 10_000_000
"""Examples after which a stream that does not know its length is taken for an endless one."""

_FROM_DICTS = "; make pairs of them, for example .map(lambda e: (e['image'], e['label']))"


def as_dataset(
    data: Any, batch_size: int | None = None, *, name: str = "data", weighted: bool = False
) -> tf.data.Dataset:
    """Makes a finite stream of batches of what the caller has.

    Args:
        data: (x, y) arrays, or lists of numbers, with the examples along the first axis, or a
            batched, finite tf.data.Dataset of (x, y).
        batch_size: of arrays 128 when None; a Dataset keeps its batches when None, and is batched
            anew otherwise.
        name: of the caller's argument, for the messages.
        weighted: whether (x, y, sample_weight) is taken, too.

    Returns:
        Batches of (x, y), or of (x, y, sample_weight) where `weighted` data has weights, in the
        order of `data`, the last one possibly smaller.

    Raises:
        TypeError: neither of the two, or no numbers.
        ValueError: empty, endless, without labels, or of unequal lengths.
    """
    is_whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_whole and batch_size >= 1):
        raise ValueError(f"batch_size must be an integer of at least 1. Received: {batch_size!r}")
    if weighted and has_weights(data):
        if isinstance(data, tf.data.Dataset):
            pairs = data.map(lambda x, y, weight: (x, (y, weight)))
        else:
            pairs = (data[0], (data[1], data[2]))
        batches = as_dataset(pairs, batch_size, name=name)
        return batches.map(lambda x, labels: (x, *labels))
    if weighted and isinstance(data, (tuple, list)) and len(data) == 3:
        data = tuple(data[:2])
    if isinstance(data, tf.data.Dataset):
        return _checked(data, batch_size, name)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            f"{name} must be a pair (x, y) of arrays or a batched tf.data.Dataset of such pairs. "
            f"Received: {_described(data)}"
        )
    x, y = (as_arrays(part) for part in data)
    arrays = tf.nest.flatten((x, y))
    lengths = [_length(array, name) for array in arrays]
    if min(lengths) == 0:
        raise ValueError(f"{name} is empty: x and y hold 0 examples")
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: x and y must have as many examples. Received: {lengths}")
    for array in arrays:
        _require_numbers(array.dtype, name)
    with tf.device("/cpu:0"):
        stream = tf.data.Dataset.from_tensor_slices((x, y))
    return stream.batch(batch_size or DEFAULT_BATCH_SIZE)


def has_weights(data: Any) -> bool:
    """Whether data of the caller's is of (x, y, sample_weight), with weights that are not None."""
    if isinstance(data, tf.data.Dataset):
        return isinstance(data.element_spec, tuple) and len(data.element_spec) == 3
    return isinstance(data, (tuple, list)) and len(data) == 3 and data[2] is not None


def example_weights(weights: Any, first: int = 0) -> np.ndarray:
    """The weights of a batch as a vector, float.

    Args:
        weights: one number per example, shape (n,) or (n, 1).
        first: number of the batch's first example, for the message.

    Raises:
        ValueError: several arrays, another shape, or numbers that are negative or not finite.
    """
    if tf.nest.is_nested(weights):
        raise ValueError(
            "sample_weight must be one number per example, for all outputs together. "
            f"Received: {type(weights).__name__} of {len(weights)}, one for each output"
        )
    array = np.asarray(weights)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"sample_weight must be one number per example. Received: shape {array.shape}"
        )
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(
            "sample_weight must be finite and not negative. Received: others in the batch from "
            f"example {first} on"
        )
    return array


def as_arrays(part: Any) -> Any:
    """Makes arrays of lists of numbers, and tuples of lists of arrays, as tf.data wants them.

    Args:
        part: x or y: arrays or lists of numbers; several inputs or outputs in a dict or tuple, or
            in a list, as Keras takes them.
    """
    if isinstance(part, Mapping):
        return {key: as_arrays(value) for key, value in part.items()}
    if isinstance(part, list) and part and all(isinstance(a, np.ndarray | tf.Tensor) for a in part):
        return tuple(part)
    if isinstance(part, tuple):
        return tuple(as_arrays(value) for value in part)
    return part if tf.is_tensor(part) else np.asarray(part)


def only_array(structure: Any, name: str = "data") -> np.ndarray:
    """The array of one input or output, or of its labels, which may come in a dict or a list.

    Raises:
        ValueError: there are several.
    """
    arrays = tf.nest.flatten(structure)
    if len(arrays) != 1:
        raise ValueError(f"{name} must be one array. Received: {len(arrays)} arrays")
    return np.asarray(arrays[0])


def count_batches(batches: tf.data.Dataset, name: str = "data") -> int:
    """How many batches there are; a stream that does not know is read to its end.

    Args:
        batches: of (x, y), from `as_dataset`.
        name: of the caller's argument, for the message.

    Raises:
        ValueError: the stream is taken for an endless one.
    """
    known = int(batches.cardinality())
    if known != tf.data.UNKNOWN_CARDINALITY:
        return known
    count = examples = 0
    for batch in batches:
        count += 1
        examples += len(tf.nest.flatten(batch)[0])
        require_end(batches, examples, name)
    return count


def require_end(batches: tf.data.Dataset, examples: int, name: str = "data") -> None:
    """Checks that a stream which gave that many examples may still end.

    Raises:
        ValueError: there were more than `ENDLESS`, and it does not know its length.
    """
    if examples > ENDLESS and batches.cardinality() == tf.data.UNKNOWN_CARDINALITY:
        raise ValueError(
            f"{name} must end. Received: a tf.data.Dataset that does not know its length and gave "
            f"more than {ENDLESS:,} examples; take a part of it, {name}.take(batches), or tell "
            "its length with tf.data.experimental.assert_cardinality"
        )


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


def _checked(dataset: tf.data.Dataset, batch_size: int | None, name: str) -> tf.data.Dataset:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"{name} must be a tf.data.Dataset of pairs (x, y). Received: elements {spec}"
            + (_FROM_DICTS if isinstance(spec, dict) else "")
        )
    for part in tf.nest.flatten(spec):
        if part.shape.rank == 0:
            raise ValueError(
                f"{name} must be a batched tf.data.Dataset: call .batch(size) on it. "
                f"Received: elements {spec}"
            )
        _require_numbers(part.dtype, name)
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"{name} is an endless tf.data.Dataset. Take a part of it: {name}.take(batches)"
        )
    empty = cardinality == 0
    if cardinality == tf.data.UNKNOWN_CARDINALITY:
        empty = next(iter(dataset.take(1)), None) is None
    if empty:
        raise ValueError(f"{name} is empty: the tf.data.Dataset has no batch")
    return dataset if batch_size is None else dataset.rebatch(batch_size)


def _length(array: Any, name: str) -> int:
    if len(array.shape) == 0:
        raise ValueError(
            f"{name}: x and y must be arrays of examples. Received: the scalar {array}; give one "
            "example a batch axis, (x[None], y[None])"
        )
    return int(array.shape[0])


def _require_numbers(dtype: Any, name: str) -> None:
    try:
        kind = tf.as_dtype(dtype)
    except TypeError:
        kind = tf.string
    if not (kind.is_floating or kind.is_integer or kind.is_bool or kind.is_complex):
        raise TypeError(
            f"{name} must hold numbers. Received: dtype {getattr(dtype, 'name', dtype)}; make "
            'them x.astype("float32"), and labels class numbers'
        )


def _described(data: Any) -> str:
    kind = type(data).__name__
    return f"{kind} of {len(data)}" if isinstance(data, (tuple, list)) else kind
