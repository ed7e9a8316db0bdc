"""The Hessian batch: examples in micro-batches that can be read again and again."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import as_dataset, example_weights, require_end
from ehap_tf.models import require_inputs
from ehap_tf.sensitivity.network.labels import require_labels

_MEMORY_LIMIT = 1 << 30


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Consecutive examples of the Hessian batch.

    Attributes:
        inputs: what the model takes, numpy arrays with the examples on axis 0.
        labels: what the loss takes.
        weights: one factor per example; ones where the caller gave none.
        first: the number of the first example in the whole Hessian batch.
    """

    inputs: Any
    labels: Any
    weights: np.ndarray
    first: int

    def __len__(self) -> int:
        return len(self.weights)

    def part(self, piece: slice) -> MicroBatch:
        """Some of the examples; `piece` has a start."""
        return MicroBatch(
            tf.nest.map_structure(lambda a: a[piece], self.inputs),
            tf.nest.map_structure(lambda a: a[piece], self.labels),
            self.weights[piece],
            self.first + piece.start,
        )

    def checksum(self, start: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Tells whether two passes over a data set gave the same examples.

        Args:
            start: the checksum of the examples before these, to go on from.
        """
        arrays = tf.nest.flatten((self.inputs, self.labels, self.weights))
        return tuple(
            zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
            for array, value in zip(arrays, start or (0,) * len(arrays), strict=True)
        )


class HessianBatch:
    """All examples that the loss averages over, in micro-batches.

    Small data is kept in memory. Data beyond a gigabyte is read again in each pass, and every
    pass has to give the same examples.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` arrays, or a finite, batched
            `tf.data.Dataset` of such tuples.
        batch_size: examples in a micro-batch; None takes a dataset's own batches, and
            128 examples of arrays.

    Attributes:
        examples: how many there are.
        largest: examples in the largest micro-batch.
        micro_batches: how many there are.

    Raises:
        ValueError: no data, infinite data, shuffled data, weights that are negative, not finite or
            all zero, examples of different shapes.
    """

    def __init__(self, data: Any, batch_size: int | None = None) -> None:
        if data is None:
            raise ValueError("data must be given for this criterion. Received: None")
        self._dataset = as_dataset(data, batch_size, weighted=True)
        self._checksums: list[tuple[int, ...]] = []
        self._memory: list[MicroBatch] | None = []
        self.examples = 0
        self.largest = 0
        first: MicroBatch | None = None
        held, some_count = 0, False
        for batch in self._read():
            _check(batch)
            self._checksums.append(batch.checksum())
            first = first or batch
            _check_same_shapes(batch, first)
            self.examples += len(batch)
            self.largest = max(self.largest, len(batch))
            require_end(self._dataset, self.examples)
            some_count = some_count or bool(batch.weights.any())
            held += sum(a.nbytes for a in tf.nest.flatten((batch.inputs, batch.labels)))
            if self._memory is not None and held <= _MEMORY_LIMIT:
                self._memory.append(batch)
            else:
                self._memory = None
        if not self.examples:
            raise ValueError("data must have at least one example. Received: an empty dataset")
        if not some_count:
            raise ValueError(
                "sample_weight must be above 0 for some example. Received: zero for all of "
                f"{self.examples}"
            )
        self.micro_batches = len(self._checksums)
        self._check_repeatable()

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._memory is not None:
            yield from self._memory
            return
        for number, batch in enumerate(self._read()):
            if number >= self.micro_batches or batch.checksum() != self._checksums[number]:
                self._refuse(number)
            yield batch

    def checksum(self) -> tuple[int, ...]:
        """Tells whether two data sets have the same examples, however they are batched."""
        value: tuple[int, ...] | None = None
        for batch in self:
            value = batch.checksum(value)
        return value or ()

    def require_fit(self, model: tf_keras.Model, loss: Any) -> None:
        """Checks that the model takes the inputs, and the loss the labels.

        Args:
            model: Functional or Sequential.
            loss: as in `rank_filters`.

        Raises:
            ValueError: the first examples do not fit.
        """
        first = next(iter(self))
        require_inputs(model, first.inputs)
        loss = loss if loss is not None else getattr(model, "loss", None)
        require_labels(model, first.labels, loss)

    def blocks(self, size: int) -> Iterator[list[MicroBatch]]:
        """Cuts the examples at the multiples of `size`, however they were batched.

        Yields:
            The examples of one block in micro-batches of at most `largest` examples; the last
            block may be smaller.
        """
        step = min(size, self.largest)
        block: list[MicroBatch] = []
        for piece in _cut(self, size, step):
            block.append(piece)
            if (piece.first + len(piece)) % size == 0:
                yield block
                block = []
        if block:
            yield block

    def _read(self) -> Iterator[MicroBatch]:
        first = 0
        for inputs, labels, *given in self._dataset.as_numpy_iterator():
            examples = len(tf.nest.flatten(inputs)[0])
            weights = example_weights(given[0], first) if given else np.ones(examples)
            yield MicroBatch(inputs, labels, weights, first)
            first += len(weights)

    def _check_repeatable(self) -> None:
        again = next(self._read(), None)
        if again is None or again.checksum() != self._checksums[0]:
            self._refuse(0)

    def _refuse(self, number: int) -> None:
        raise ValueError(
            "data must give the same examples in every pass, or scores could not be repeated. "
            f"Received: a dataset whose micro-batch {number} differs between two passes; remove "
            "shuffling and random augmentation, or pass arrays"
        )


def _cut(batches: Iterable[MicroBatch], size: int, step: int) -> Iterator[MicroBatch]:
    """Re-cuts consecutive micro-batches: each piece ends at a multiple of `size` or has `step`."""
    held: list[MicroBatch] = []
    for batch in batches:
        held.append(batch)
        while held:
            start = held[0].first
            end = min(start + step, (start // size + 1) * size)
            if sum(len(b) for b in held) < end - start:
                break
            whole = _joined(held)
            yield whole.part(slice(0, end - start))
            rest = whole.part(slice(end - start, None))
            held = [rest] if len(rest) else []
    if held:
        yield _joined(held)


def _joined(batches: list[MicroBatch]) -> MicroBatch:
    if len(batches) == 1:
        return batches[0]

    def join(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays)

    return MicroBatch(
        tf.nest.map_structure(join, *[b.inputs for b in batches]),
        tf.nest.map_structure(join, *[b.labels for b in batches]),
        np.concatenate([b.weights for b in batches]),
        batches[0].first,
    )


def _check(batch: MicroBatch) -> None:
    for array in tf.nest.flatten(batch.inputs):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(
                f"data must be finite. Received: NaN or infinity in the inputs of examples "
                f"{batch.first} to {batch.first + len(batch) - 1}"
            )


def _check_same_shapes(batch: MicroBatch, first: MicroBatch) -> None:
    for name in ("inputs", "labels"):
        wanted, found = (
            [a.shape[1:] for a in tf.nest.flatten(getattr(b, name))] for b in (first, batch)
        )
        if wanted != found:
            raise ValueError(
                f"data must have {name} of one shape. Received: {found} in the micro-batch from "
                f"example {batch.first} on, {wanted} in the first; pad, crop or resize them"
            )
