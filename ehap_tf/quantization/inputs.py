"""The inputs among what users call data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

LARGEST_BATCH = 128


def input_batches(data: Any, count: int) -> Iterator[np.ndarray]:
    """The first batches of inputs, float32, without labels.

    Args:
        data: `(x, y)` or `(x,)` arrays, or a batched `tf.data.Dataset` of inputs or of (inputs,
            labels).
        count: how many at most; arrays are cut into that many batches of at most 128 examples.
    """
    if isinstance(data, tf.data.Dataset):
        for element in data.take(count):
            x = element[0] if isinstance(element, tuple | list) else element
            yield np.asarray(x, np.float32)
        return
    x = data[0] if isinstance(data, tuple | list) else data
    x = np.asarray(x)
    size = max(1, min(LARGEST_BATCH, len(x) // count or len(x)))
    for start in range(0, min(len(x), size * count), size):
        yield np.asarray(x[start : start + size], np.float32)
