"""Data that comes from a Keras loader: `Sequence` of tf_keras, `PyDataset` of Keras 3."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.models.keras3.detection import is_keras3_loader


def is_loader(value: Any) -> bool:
    """Whether `value` gives batches by their number."""
    return isinstance(value, tf_keras.utils.Sequence) or is_keras3_loader(value)


def loader_as_dataset(loader: Any, name: str = "data") -> tf.data.Dataset:
    """The batches of a loader in the order of their numbers, each time that they are asked for.

    `on_epoch_end` is not called: it shuffles the loader, which stays as it is.

    Args:
        loader: a `tf_keras.utils.Sequence` or a `keras.utils.PyDataset` of known length.
        name: of the caller's argument, for the messages.

    Raises:
        ValueError: the loader is empty, or does not know its length.
    """
    length: int | None
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        length = getattr(loader, "num_batches", None)
    if not length:
        raise ValueError(
            f"{name} must have a known number of batches, of at least 1. Received: "
            f"{type(loader).__name__} of {length}; give it a __len__"
        )
    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), _batch(loader, 0)
    )

    def batches() -> Iterator[Any]:
        for number in range(length):
            yield _batch(loader, number)

    stream = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return stream.apply(tf.data.experimental.assert_cardinality(length))


def refuse_generator(value: Any, name: str) -> None:
    """Refuses generators and the functions that make them, with the way out.

    Raises:
        TypeError: `value` is one.
    """
    if not (inspect.isgenerator(value) or inspect.isgeneratorfunction(value)):
        return
    kind = "a generator" if inspect.isgenerator(value) else "a function that makes a generator"
    raise TypeError(
        f"{name} is read more than once. Received: {kind}. Make arrays of its batches, x, y = map("
        "np.concatenate, zip(*batches)), or give a tf.data.Dataset: "
        "tf.data.Dataset.from_generator(make_batches, output_signature=...), or a "
        "tf_keras.utils.Sequence"
    )


def _batch(loader: Any, number: int) -> Any:
    return _arrays(loader[number])


def _arrays(part: Any) -> Any:
    """Arrays in tuples and dicts, as tf.data takes them; a last None, for no weights, is left."""
    if isinstance(part, Mapping):
        return {key: _arrays(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_arrays(value) for value in part if value is not None)
    if isinstance(part, list) and part and all(hasattr(a, "shape") and a.shape for a in part):
        return tuple(np.asarray(value) for value in part)
    return np.asarray(part)
