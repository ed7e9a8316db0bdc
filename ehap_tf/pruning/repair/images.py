"""The images that a repair looks at, in micro-batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import as_arrays
from ehap_tf.models import require_inputs
from ehap_tf.pruning.repair.walk import Key, Program, Values

_TENSOR_BYTES = 32 * 2**20
"""The largest tensor of a micro-batch, about."""

_EXACT_BYTES = 2**30
"""Kept for all micro-batches; where more would be kept, it is kept in float16."""

_LARGEST_HALF = 6e4
"""That float16 holds, about."""


@dataclasses.dataclass(frozen=True)
class _Halved:
    """A float32 tensor in float16."""

    tensor: tf.Tensor


@dataclasses.dataclass
class MicroBatch:
    """Some examples, and what of the networks was computed from them.

    Attributes:
        start, stop: their places among all examples.
        kept: the tensors that somebody needs yet, as they are stored.
        count: how many micro-batches there are.
    """

    start: int
    stop: int
    kept: dict[Key, Any]
    count: int = 1

    def values(self) -> Values:
        """The tensors that somebody needs yet."""
        return {
            key: tf.cast(value.tensor, tf.float32) if isinstance(value, _Halved) else value
            for key, value in self.kept.items()
        }

    def keep(self, values: Values) -> None:
        """Keeps these tensors; in half of the memory where it is much, to 1e-3 of a value."""
        total = sum(value.dtype.size * math.prod(value.shape) for value in values.values())
        halves = total * self.count > _EXACT_BYTES
        self.kept = {key: _halved(value) if halves else value for key, value in values.items()}


def _halved(value: tf.Tensor) -> Any:
    fits = value.dtype == tf.float32 and float(tf.reduce_max(tf.abs(value))) < _LARGEST_HALF
    return _Halved(tf.cast(value, tf.float16)) if fits else value


def first_images(model: tf_keras.Model, images: Any, examples: int, seed: int) -> list[Any]:
    """At most `examples` examples of each input of the model, in the order of `model.inputs`.

    Raises:
        ValueError: the images are empty or do not fit the model.
    """
    if isinstance(images, tf.data.Dataset):
        inputs = _of_dataset(images, examples)
    else:
        inputs = tf.nest.map_structure(np.asarray, as_arrays(_without_labels(model, images)))
    lengths = {len(array) if np.ndim(array) else 0 for array in tf.nest.flatten(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "images must hold as many examples of each input, at least one. Received: "
            f"{sorted(lengths)}"
        )
    (count,) = lengths
    require_inputs(model, inputs, "images")
    flat = model._flatten_to_reference_inputs(inputs)
    if count > examples:
        chosen = np.sort(np.random.default_rng(seed).choice(count, examples, replace=False))
        flat = [array[chosen] for array in flat]
    return [
        model._conform_to_reference_input(tf.convert_to_tensor(array), ref_input=tensor)
        for tensor, array in zip(model.inputs, flat, strict=True)
    ]


def micro_batches(
    dense: Program, slim: Program, images: list[Any], size: int | None
) -> list[MicroBatch]:
    """The images as inputs of both networks; `size` is chosen by their tensors when None."""
    size = size or _fitting_size(dense)
    count = len(images[0])
    batches = []
    for start in range(0, count, size):
        part = [tensor[start : start + size] for tensor in images]
        values = {
            k: t for keys in (dense.inputs, slim.inputs) for k, t in zip(keys, part, strict=True)
        }
        stop = min(start + size, count)
        batches.append(MicroBatch(start, stop, values, math.ceil(count / size)))
    return batches


def _fitting_size(program: Program) -> int:
    largest = max(
        (
            math.prod(size or 1 for size in tensor.shape[1:])
            for step in program.steps
            for tensor in tf.nest.flatten(step.node.outputs)
        ),
        default=1,
    )
    return int(np.clip(_TENSOR_BYTES // (4 * largest), 1, 128))


def _of_dataset(images: tf.data.Dataset, examples: int) -> Any:
    parts, count = [], 0
    for element in images:
        inputs = element[0] if isinstance(element, tuple) else element
        parts.append(tf.nest.map_structure(np.asarray, inputs))
        count += len(tf.nest.flatten(parts[-1])[0])
        if count >= examples:
            break
    if not parts:
        raise ValueError("images is empty: the tf.data.Dataset has no batch")
    joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    return tf.nest.map_structure(lambda array: array[:examples], joined)


def _without_labels(model: tf_keras.Model, images: Any) -> Any:
    """The inputs of (x, y[, sample_weight]); a tuple of as many as the model has is inputs."""
    if not isinstance(images, tuple) or len(images) not in (2, 3):
        return images
    inputs = len(model.inputs)
    is_labelled = inputs != len(images) or len(tf.nest.flatten(as_arrays(images[0]))) == inputs
    return images[0] if is_labelled else images
