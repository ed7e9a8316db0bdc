"""The inputs among what users call data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import input_layer_names

LARGEST_BATCH = 128
"""Examples of arrays in one forward pass."""

FORMS = "(x, y) or (x,) arrays, an array, or a batched tf.data.Dataset"


def input_names(model: tf_keras.Model) -> list[str]:
    """The names of the inputs in the model's order: the keys of its dict, or its input layers'."""
    nested = getattr(model, "_nested_inputs", None)
    if isinstance(nested, dict):
        return sorted(nested)
    return input_layer_names(model)


def input_arrays(model: tf_keras.Model, x: Any, what: str = "data") -> list[np.ndarray]:
    """Returns one array for each input of `model`, in its order.

    Args:
        model: a functional model.
        x: one array, or for several inputs a list of them in the model's order or a dict.
        what: the argument's name, for the message.

    Raises:
        ValueError: `x` holds other inputs than the model takes.
    """
    names = input_names(model)
    if isinstance(x, Mapping):
        parts = [x[name] for name in names if name in x]
    elif len(names) == 1:
        parts = [x]
    else:
        parts = list(x) if isinstance(x, tuple | list) else [x]
    if len(parts) != len(names):
        received = f"the inputs {', '.join(x)}" if isinstance(x, Mapping) else f"{len(parts)}"
        raise ValueError(
            f"{what} must hold (inputs, labels) with the {len(names)} inputs {', '.join(names)}, "
            f"in this order or as a dict. Received: {received}"
        )
    return [np.asarray(part) for part in parts]


def input_batches(
    model: tf_keras.Model, data: Any, examples: int | None, what: str = "data"
) -> Iterator[list[np.ndarray]]:
    """The first examples in batches: float32, one array for each input of `model`, without labels.

    Args:
        model: that the inputs are for.
        data: `(x, y)` or `(x,)` arrays, an array, or a batched `tf.data.Dataset` of inputs or of
            (inputs, labels); several inputs as for `input_arrays`. Arrays are cut into batches of
            at most 128.
        examples: how many at most, however they are batched; None is all.
        what: the argument's name, for the messages.

    Raises:
        TypeError: the data is of another form: a generator, a function.
        ValueError: the data is empty, of the wrong shape, not finite, or a list of batches.
    """
    left, empty = examples, True
    for batch in _batches(model, data, examples, what):
        batch = batch if left is None else [array[:left] for array in batch]
        for array, tensor in zip(batch, model.inputs, strict=True):
            if not tensor.shape.is_compatible_with(array.shape):
                raise ValueError(
                    f"{what} must hold inputs of shape {tuple(tensor.shape)}. "
                    f"Received: a batch of shape {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{what} holds NaN or infinite values.")
        if not len(batch[0]):
            continue
        yield batch
        empty = False
        if left is not None:
            left -= len(batch[0])
            if not left:
                return
    if empty:
        raise ValueError(f"{what} is empty.")


def _batches(
    model: tf_keras.Model, data: Any, examples: int | None, what: str
) -> Iterator[list[np.ndarray]]:
    if isinstance(data, tf.data.Dataset):
        for element in data:
            x = element[0] if isinstance(element, tuple | list) else element
            yield [array.astype(np.float32) for array in input_arrays(model, x, what)]
        return
    parts = data if isinstance(data, tuple | list) else (data,)
    if not parts:
        return
    x, *y = parts
    if not (isinstance(x, Mapping | tuple | list) or hasattr(x, "shape")):
        raise TypeError(f"{what} must be {FORMS}. Received: {type(x).__name__}")
    arrays = input_arrays(model, x, what)
    if len(y) > 1 or not all(_are_labels(part, len(arrays[0])) for part in y):
        raise ValueError(
            f"{what} must be {FORMS}, with one label for each of the {len(arrays[0])} inputs. "
            f"Received: a {type(data).__name__} of {len(parts)}; join batches with np.concatenate"
        )
    count = len(arrays[0]) if examples is None else min(len(arrays[0]), examples)
    for part in np.array_split(np.arange(count), -(-count // LARGEST_BATCH) or 1):
        if len(part):
            yield [array[part[0] : part[-1] + 1].astype(np.float32) for array in arrays]


def _are_labels(y: Any, examples: int) -> bool:
    """Whether `y` can be the labels of so many examples, in several arrays for several outputs."""
    if isinstance(y, Mapping):
        return all(_are_labels(part, examples) for part in y.values())
    if isinstance(y, tuple | list):
        return len(y) == examples or (bool(y) and all(_are_labels(part, examples) for part in y))
    return y is None or (np.ndim(y) > 0 and len(y) == examples)
