"""Runs a compiled step over micro-batches, probes and replicas, and repeats what overflowed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.sensitivity.estimators.scaling import Scales
from ehap_tf.sensitivity.network.hessian_batch import MicroBatch
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.running.replicas import Replicas
from ehap_tf.sensitivity.statistics import Floats


class ProbeRunner:
    """Sums a step's results over micro-batches.

    Args:
        network: the differentiated model.
        step: `step(inputs, labels, weights, first, probes, scales)` -> (values, finite), with
            values of shape (probes, size).
        replicas: where to run; each call splits the probes over them.
        scales: kept from call to call.
    """

    def __init__(
        self,
        network: Network,
        step: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        replicas: Replicas,
        scales: Scales,
    ) -> None:
        self._network = network
        self._step = step
        self._spread = replicas.spread
        self._run: Callable[[Sequence[tuple[Any, ...]]], list[Any]] | None = None
        self._replicas = replicas.count
        self._scales = scales

    def sum(self, probes: np.ndarray, batches: Iterable[MicroBatch]) -> Floats:
        """The sum over micro-batches.

        Args:
            probes: probe numbers.
            batches: at least one.

        Returns:
            Shape (len(probes), size), float64; scaling is undone.
        """
        total: Floats | None = None
        for group in _grouped(self._items(len(probes), batches), self._replicas):
            for (_, rows), values in zip(group, self._values(group, probes), strict=True):
                if total is None:
                    total = np.zeros((len(probes), values.shape[1]))
                total[rows] += values
        assert total is not None  # a Hessian batch is never empty
        return total

    def _items(
        self, probes: int, batches: Iterable[MicroBatch]
    ) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """(micro-batch, rows of the probes) for each piece of work."""
        parts = np.array_split(np.arange(probes), min(probes, self._replicas))
        for batch in batches:
            tensors = self._network.tensors(batch)
            for rows in parts:
                yield tensors, rows

    def _values(
        self, group: list[tuple[tuple[Any, ...], np.ndarray]], probes: np.ndarray
    ) -> list[Floats]:
        """One array a piece of work; probes are repeated until all of their values are usable."""
        results: list[Floats | None] = [None] * len(group)
        open_rows = [np.arange(len(rows)) for _, rows in group]
        while waiting := [i for i, rows in enumerate(open_rows) if len(rows)]:
            arguments = [
                (*group[i][0], *self._probe_arguments(probes[group[i][1][open_rows[i]]]))
                for i in waiting
            ]
            for i, (values, finite) in zip(
                waiting, self._compiled(arguments[0])(arguments), strict=True
            ):
                rows = open_rows[i]
                products = np.asarray(values, np.float64)
                weightless = not np.any(group[i][0][2])
                usable = self._scales.update(bool(finite), products, weightless)
                result = results[i]
                if result is None:
                    result = results[i] = np.zeros((len(rows), products.shape[1]))
                result[rows[usable]] = products[usable]
                open_rows[i] = rows[~usable]
        return [result for result in results if result is not None]

    def _compiled(
        self, arguments: tuple[Any, ...]
    ) -> Callable[[Sequence[tuple[Any, ...]]], list[Any]]:
        if self._run is None:
            # Traced once for all sizes of micro-batches and numbers of probes.
            signature = tf.nest.map_structure(_any_length, arguments)
            function = tf.function(
                self._step,
                input_signature=signature,
                autograph=False,  # our steps need none; Keras converts layers by itself
            )
            self._run = self._spread(function)
        return self._run

    def _probe_arguments(self, probes: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        scales = tf.constant(self._scales.values(), self._network.dtype)
        return tf.constant(probes, tf.int32), scales


def _any_length(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
