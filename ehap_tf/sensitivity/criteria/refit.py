"""What is left of the error of a removal once the layers that read the filters are solved again.

Structured optimal brain surgeon (Hassibi and Stork 1993, for groups of weights). A layer reads X,
its inputs unfolded and centered, with the kernel matrix W, and H = X^T X / m. Without the rows R of
W its outputs are apart by tr(W_R^T H_RR W_R). When the other rows are solved again by least
squares, as `repair` does, tr(W_R^T ((H^-1)_RR)^-1 W_R) of it is left. Filters are taken one by one,
the one first of which least is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import TracedCall, trace_channels
from ehap_tf.graph import Kernel, Sums, in_parts, kernel_of, some_positions
from ehap_tf.graph.kernels import Indices
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats

_POSITIONS = 20_000
"""Output positions of a reader that are looked at, over all examples."""

_RIDGE = 1e-2
"""As the ridge of `repair`."""

_GRAM_BYTES = 2**30
"""Of the matrices H that are added up in one pass over the data."""

_LARGEST = 8192
"""Rows of a reader, at most: H of more would take gigabytes, and hours to invert as often."""

_STEPS = 64
"""A layer of more filters loses several at once."""


@dataclasses.dataclass(frozen=True)
class Refit:
    """How the filters of a layer go.

    Attributes:
        order: of the filters, the first to go first.
        left: what is left of the error when 1, 2, ... of them are gone, as a share of it.
    """

    order: npt.NDArray[np.int64]
    left: Floats


@dataclasses.dataclass(frozen=True)
class Reader:
    """A layer that reads filters of another.

    Attributes:
        path: of the reading layer.
        rows: for each filter the rows of the reader's kernel matrix, shape (filters, rows of one).
    """

    path: str
    rows: Indices


def refits(network: Network, data: HessianBatch) -> dict[str, Refit]:
    """Layer path -> its `Refit`, for layers whose filters are read by kernels alone.

    Filters that go into a sum or out of the model are read by no layer that could make up for them.
    Readers of more than `_LARGEST` rows (a Dense layer behind the Flatten of a large map) are not
    solved again.
    """
    layers = {layer.name: layer.layer for layer in network.layers}
    kernels = {path: kernel for path, layer in layers.items() if (kernel := kernel_of(layer))}
    large = {path for path, kernel in kernels.items() if _rows(kernel) > _LARGEST}
    owners = {
        owner: readers
        for owner, readers in find_readers(network.model).items()
        if large.isdisjoint(reader.path for reader in readers)
    }
    paths = {reader.path for readers in owners.values() for reader in readers}
    kernels = {path: kernels[path] for path in sorted(paths)}
    grams = _grams(network, data, kernels)
    return {
        owner: removal_order(
            [
                System(grams[reader.path], _matrix(kernels[reader.path]), reader.rows)
                for reader in readers
            ]
        )
        for owner, readers in owners.items()
    }


def find_readers(model: tf_keras.Model) -> dict[str, list[Reader]]:
    """The layers that read the filters of each layer, where it is kernels alone that do."""
    graph = trace_channels(model)
    size = len(graph.ids)
    owner_of, number_of = np.full(size, -1), np.zeros(size, np.int64)
    owners = list(graph.ids.atoms)
    for place, owner in enumerate(owners):
        ids = graph.ids.atoms[owner]
        owner_of[ids], number_of[ids] = place, np.arange(len(ids))
    found: dict[str, dict[str, Reader]] = {owner: {} for owner in owners}
    refused: set[str] = set()
    for call in graph.calls.values():
        arriving = np.concatenate([ids.ravel() for ids in call.arriving] or [np.zeros(0, np.int64)])
        if _hands_on(arriving, call.effect.outputs):
            continue
        seen = {owners[place] for place in np.unique(owner_of[arriving]) if place >= 0}
        rows = _ids_of_rows(call)
        for owner in seen:
            by_filter = None
            if rows is not None:
                mine = np.flatnonzero(owner_of[rows] == owners.index(owner))
                by_filter = _by_filter(mine, number_of[rows[mine]])
            if by_filter is None or len(by_filter) != len(graph.ids.atoms[owner]):
                refused.add(owner)
            else:
                found[owner][call.path] = Reader(call.path, by_filter)
    for ids, _ in graph.outputs:
        refused.update(owners[place] for place in np.unique(owner_of[ids]) if place >= 0)
    return {
        owner: list(readers.values())
        for owner, readers in found.items()
        if readers and owner not in refused
    }


def _hands_on(arriving: Indices, outputs: Sequence[Indices]) -> bool:
    """Whether every channel that arrives leaves, by itself and as often as the others."""
    if len(outputs) != 1 or not len(arriving) or outputs[0].size % arriving.size:
        return False
    return bool(np.isin(arriving, outputs[0]).all())


def _matrix(kernel: Kernel) -> Floats:
    """W of a layer that is one system."""
    (matrix,) = kernel.matrix(kernel.value)
    return np.asarray(matrix, np.float64)


def _rows(kernel: Kernel) -> int:
    return int(kernel.matrix(kernel.value).shape[1])


def _ids_of_rows(call: TracedCall) -> Indices | None:
    """The channel id that each row of a layer's kernel matrix reads; None for other layers."""
    kernel, owner = kernel_of(call.layer), call.effect.filters
    if kernel is None or owner is None or getattr(call.layer, "groups", 1) > 1:
        return None
    attribute, axis = owner
    ids = call.effect.weights[attribute][-1 if axis == -2 else -2]
    return None if ids is None else np.tile(ids, _rows(kernel) // len(ids))


def _by_filter(rows: Indices, filters: Indices) -> Indices | None:
    """The rows of each filter, when all have as many."""
    counts = np.bincount(filters)
    if not len(counts) or counts.min() != counts.max():
        return None
    return rows[np.argsort(filters, kind="stable")].reshape(len(counts), -1)


def _grams(
    network: Network, data: HessianBatch, kernels: Mapping[str, Kernel]
) -> dict[str, Floats]:
    """The matrix H of each reader, in as many passes over the data as memory asks for."""
    found: dict[str, Floats] = {}
    waiting = list(kernels)
    while waiting:
        sums: dict[str, Sums] = {}
        held = 0
        while waiting and held < _GRAM_BYTES:
            path = waiting.pop()
            rows = _rows(kernels[path])
            held += 16 * rows**2
            sums[path] = Sums(1, rows, 0)
        onlooker = _Onlooker(network, kernels, sums, data.examples)
        for batch in data:
            inputs = tf.nest.map_structure(tf.convert_to_tensor, batch.inputs)
            network.forward(inputs, before=onlooker.look)
        found.update((path, one.gram[0]) for path, one in sums.items())
    return found


class _Onlooker:
    """Adds up products of what readers read, at random positions."""

    def __init__(
        self,
        network: Network,
        kernels: Mapping[str, Kernel],
        sums: Mapping[str, Sums],
        examples: int,
    ) -> None:
        self._paths = {id(one.layer): one.name for one in network.layers if one.name in sums}
        self._kernels = kernels
        self._sums = sums
        self._examples = examples
        self._rng = np.random.default_rng(0)

    def look(self, node: Any, tensor: Any) -> Any:
        """As `Before`."""
        path = self._paths.get(id(node.layer))
        if path is not None:
            kernel, values = self._kernels[path], tf.cast(tensor, tf.float32)
            most = -(-_POSITIONS * len(values) // self._examples)
            # The steps of a TimeDistributed are as good as examples.
            own = tensor.shape[1 + tensor.shape.rank - node.keras_inputs[0].shape.rank :]
            values = tf.reshape(values, [-1, *own])
            total = len(values) * int(np.prod(kernel.output_positions(tuple(values.shape))))
            positions = some_positions(total, most, self._rng)
            for part in in_parts(positions, 4 * _rows(kernel)):
                self._sums[path].add(kernel.unfolded(values, part), tf.zeros([1, len(part), 0]))
        return tensor


@dataclasses.dataclass
class System:
    """One reader while filters go.

    Attributes:
        gram: H, (rows, rows).
        matrix: W, (rows, outputs).
        rows: of each filter, (filters, rows of one).
    """

    gram: Floats
    matrix: Floats
    rows: Indices

    def __post_init__(self) -> None:
        size = len(self.gram)
        scale = np.trace(self.gram) / size
        # Without any input nothing is lost, and nothing made up for.
        self.gram = self.gram + max(_RIDGE * scale, 1e-30) * np.eye(size)
        self._inverse = np.linalg.inv(self.gram)
        self._solved = self.matrix.copy()
        self._moved = np.zeros_like(self.matrix)
        whole = float(np.sum(self.matrix * (self.gram @ self.matrix)))
        self.unit = 1 / whole if whole > 0 else 0.0

    def left_by(self, filters: Indices) -> Floats:
        """What is left of the error that each of some filters adds when it goes next."""
        rows = self.rows[filters]
        blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
        solved = self._solved[rows]
        return np.einsum("kro,kro->k", solved, np.linalg.solve(blocks, solved)) * self.unit

    def remove(self, one: int) -> tuple[float, float]:
        """Takes a filter; returns by how much the error with and without solving again grows."""
        rows = self.rows[one]
        left = float(self.left_by(np.array([one]))[0])
        mine = self.matrix[rows]
        plain = np.sum(mine * (self.gram[np.ix_(rows, rows)] @ mine + 2 * self._moved[rows]))
        self._moved += self.gram[:, rows] @ mine
        down = np.linalg.solve(self._inverse[np.ix_(rows, rows)], self._inverse[rows])
        self._solved -= down.T @ self._solved[rows]
        self._inverse -= self._inverse[:, rows] @ down
        # What is gone takes no part any more; ones keep its block invertible.
        self._solved[rows] = 0
        self._inverse[rows] = self._inverse[:, rows] = 0
        return left, float(plain) * self.unit


def removal_order(systems: Sequence[System]) -> Refit:
    """The order in which filters go, and what is left of the error, over all their readers."""
    filters = len(systems[0].rows)
    waiting, order, left = np.arange(filters), [], []
    totals = np.zeros(2)
    while len(waiting):
        costs = np.sum([system.left_by(waiting) for system in systems], axis=0)
        chosen = waiting[np.argsort(costs, kind="stable")[: max(1, filters // _STEPS)]]
        for one in chosen.tolist():
            totals += np.sum([system.remove(one) for system in systems], axis=0)
            order.append(one)
            left.append(float(np.clip(totals[0] / totals[1], 0, 1)) if totals[1] > 0 else 1.0)
        waiting = np.setdiff1d(waiting, chosen)
    return Refit(np.array(order, np.int64), np.array(left))
