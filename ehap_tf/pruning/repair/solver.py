"""The walk over both networks that solves for one kernel after the other."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.graph import layer_paths
from ehap_tf.progress import ProgressCallback
from ehap_tf.pruning.plan import PruningPlan
from ehap_tf.pruning.repair.images import MicroBatch, micro_batches
from ehap_tf.pruning.repair.kernels import products
from ehap_tf.pruning.repair.least_squares import Sums
from ehap_tf.pruning.repair.matching import Target, find_targets
from ehap_tf.pruning.repair.walk import Stop, Values, plan_stops, unrolled

Floats = npt.NDArray[Any]

Changes = dict[str, dict[str, Floats]]
"""Layer path -> attribute of a weight -> its new value."""

_SAME = 1e-5
"""Outputs that are apart by less, relative to their root mean square, are apart by rounding."""

_UNFOLDED_BYTES = 64 * 2**20
"""Unfolded inputs that are held at once, about."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which output positions of a layer count.

    Attributes:
        positions: at most so many over all examples and calls of a layer.
        seed: of the choice, which depends on nothing else but the layer's place in the network.
    """

    positions: int
    seed: int

    def choose(self, total: int, share: int, *place: int) -> npt.NDArray[np.int64]:
        """Sorted positions of [0, total), a `share`-th of `positions` at most."""
        most = -(-self.positions // share)
        if total <= most:
            return np.arange(total)
        rng = np.random.default_rng([self.seed, *place])
        return np.sort(rng.choice(total, most, replace=False, shuffle=False))


class Solver:
    """Repairs a slim network in place.

    Args:
        slim: a copy for this purpose, every layer that owns a kernel with a bias.
        model: the dense network.
        plan: what was kept.
        sampling: which positions count.
        ridge: see `repair`.
    """

    def __init__(
        self,
        slim: tf_keras.Model,
        model: tf_keras.Model,
        plan: PruningPlan,
        sampling: Sampling,
        ridge: float,
    ) -> None:
        keys = itertools.count()
        self._dense, self._slim = unrolled(model, keys), unrolled(slim, keys)
        self._targets = find_targets(model, plan, self._dense, self._slim)
        paths = layer_paths(slim)
        self._layers = {paths[id(step.layer)]: step.layer for step in self._slim.steps}
        self._sampling = sampling
        self._ridge = ridge

    def run(self, images: list[Any], batch_size: int | None, progress: ProgressCallback) -> Changes:
        """Solves for every kernel; returns what changed."""
        batches = micro_batches(self._dense, self._slim, images, batch_size)
        # The walk alone holds the images now, and lets go of them.
        del images[:]
        stops = plan_stops((self._dense, self._slim), [target.reads for target in self._targets])
        changes: Changes = {}
        started = time.monotonic()
        for number, (target, stop) in enumerate(zip(self._targets, stops, strict=True)):
            system = _System(target, self._sampling, number, batches[-1].stop)
            for batch in batches:
                _advance(stop, batch, system)
            figures = self._solve(target, system, changes)
            figures["seconds"] = time.monotonic() - started
            progress(number + 1, len(stops), figures)
        return changes

    def _solve(self, target: Target, system: _System, changes: Changes) -> dict[str, float]:
        """Gives the layer its new kernel and mean, unless its outputs are right already."""
        before = system.relative_error()
        if before <= _SAME:
            return {"error": before, "error_left": before}
        step, shift = system.sums.solve(self._ridge)
        kernel = target.slim
        mine = changes.setdefault(target.path, {})
        mine[kernel.attribute] = kernel.value + kernel.from_matrix(step)
        getattr(kernel.layer, kernel.attribute).assign(mine[kernel.attribute])
        shift = shift.reshape(-1)
        if target.norm is not None:
            norm = self._layers[target.norm]
            changes[target.norm] = {"moving_mean": np.asarray(norm.moving_mean) - shift}
            norm.moving_mean.assign(changes[target.norm]["moving_mean"])
        elif not target.keeps_mean:
            mine["bias"] = kernel.bias + shift
            kernel.layer.bias.assign(mine["bias"])
        return {"error": before, "error_left": system.relative_error_left(step)}


class _System:
    """The regression of what a layer's outputs lack on its unfolded inputs."""

    def __init__(self, target: Target, sampling: Sampling, number: int, examples: int) -> None:
        self._target = target
        self._sampling = sampling
        self._number = number
        self._examples = examples
        self._matrix = target.slim.matrix(target.slim.value)
        self._chosen: dict[int, npt.NDArray[np.int64]] = {}
        self._squares = np.zeros(2)
        self.sums = Sums(*self._matrix.shape)
        self.calls = len(target.pairs)

    def look(self, call: int, batch: MicroBatch, values: Values) -> None:
        """Adds the positions of one micro-batch at one call of the layer."""
        target, pair = self._target, self._target.pairs[call]
        slim, dense = (tf.cast(values[key], tf.float32) for key in target.looks_at(pair))
        for positions in self._parts(call, batch, slim.shape):
            unfolded = target.slim.unfolded(slim, positions)
            wanted = tf.gather(target.wanted(dense, positions), target.filters, axis=1)
            if target.sum_behind is not None:
                wanted += target.sum_behind.lacks(values, positions)
            lacks = wanted - products(unfolded, self._matrix) - target.slim.bias
            self._squares += [float(tf.reduce_sum(tf.square(t))) for t in (lacks, wanted)]
            self.sums.add(unfolded, tf.reshape(lacks, [len(positions), len(self._matrix), -1]))

    def relative_error(self) -> float:
        """Root mean square of what is lacking, relative to that of what is wanted."""
        lacks, wanted = self._squares
        return float(np.sqrt(lacks / wanted if wanted > 0 else lacks))

    def relative_error_left(self, coefficients: Floats) -> float:
        """The same after the kernel changed by the solution, and the mean by its intercepts."""
        wanted = self._squares[1] / (self.sums.count * len(self._target.filters))
        left = self.sums.mean_square_left(coefficients)
        return float(np.sqrt(left / wanted if wanted > 0 else left))

    def _parts(
        self, call: int, batch: MicroBatch, shape: tuple[int, ...]
    ) -> list[npt.NDArray[np.int64]]:
        """The chosen positions of a micro-batch, counted within it, in parts of bounded size."""
        of_example = int(np.prod(self._target.slim.output_positions(shape)))
        if call not in self._chosen:
            self._chosen[call] = self._sampling.choose(
                of_example * self._examples, len(self._target.pairs), self._number, call
            )
        chosen = self._chosen[call]
        first, last = np.searchsorted(chosen, [batch.start * of_example, batch.stop * of_example])
        mine = chosen[first:last] - batch.start * of_example
        if not len(mine):
            return []
        row = 4 * max(len(self._matrix) * self._matrix.shape[1], 1)
        return np.array_split(mine, -(-len(mine) * row // _UNFOLDED_BYTES))


def _advance(stop: Stop, batch: MicroBatch, system: _System) -> None:
    """Takes a micro-batch to the next layer, and lets go of the tensors that nobody needs."""
    for step in stop.before:
        step.run(batch.values)
    values = dict(batch.values) if stop.beside else batch.values
    for step in stop.beside:
        step.run(values)
    for call in range(system.calls):
        system.look(call, batch, values)
    for key in [key for key in batch.values if key not in stop.needed_later]:
        del batch.values[key]
