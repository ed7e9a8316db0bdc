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

from ehap_tf.graph import Sums, by_group, in_parts, layer_paths, products, some_positions
from ehap_tf.progress import ProgressCallback
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.repair.behind import matched
from ehap_tf.pruning.repair.images import MicroBatch, micro_batches
from ehap_tf.pruning.repair.matching import Target, find_targets
from ehap_tf.pruning.repair.walk import Stop, Values, plan_stops, unrolled

Floats = npt.NDArray[Any]

Changes = dict[str, dict[str, Floats]]
"""Layer path -> attribute of a weight -> its new value."""

_SAME = 1e-5
"""Outputs that are apart by less, relative to their root mean square, are apart by rounding."""

_ROWS_BYTES = 512 * 2**20
"""Of one layer, kept for regressions that are repeated, about: fewer positions where that is not
enough for all."""

_KEPT_OF_FILTERS = 6
"""Numbers for each filter and position: those of `_Rows`, and what is lacking, old and new."""

_FEWEST, _FOR_EACH_INPUT = 8_000, 64
"""Positions of a layer that are looked at, where nothing else is said."""

_ROUNDS, _ENOUGH, _RELAXATION = 5, 0.99, 1.6
"""A regression is repeated at most so often, and as long as the error falls by a hundredth; each
step goes so much further than its solution, which saves half of them."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which output positions of a layer count.

    Attributes:
        positions: at most so many over all examples and calls of a layer; None for
            `_FOR_EACH_INPUT` times the rows of its kernel's matrix, at least `_FEWEST`.
        seed: of the choice, which depends on nothing else but the layer's place in the network.
    """

    positions: int | None
    seed: int

    def most(self, inputs: int) -> int:
        """How many positions of a layer whose kernel's matrix has so many rows."""
        return self.positions or max(_FEWEST, _FOR_EACH_INPUT * inputs)

    def choose(self, total: int, most: int, *place: int) -> npt.NDArray[np.int64]:
        """Sorted positions of [0, total), at most so many."""
        return some_positions(total, most, np.random.default_rng([self.seed, *place]))


class Solver:
    """Repairs a slim network in place.

    Args:
        slim: a copy for this purpose.
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
        self.targets = find_targets(model, plan, self._dense, self._slim)
        paths = layer_paths(slim)
        self._layers = {paths[id(step.layer)]: step.layer for step in self._slim.steps}
        self._sampling = sampling
        self._ridge = ridge

    def run(self, images: list[Any], batch_size: int | None, progress: ProgressCallback) -> Changes:
        """Solves for every kernel; returns what changed."""
        batches = micro_batches(self._dense, self._slim, images, batch_size)
        # The walk alone holds the images now, and lets go of them.
        del images[:]
        stops = plan_stops((self._dense, self._slim), [target.reads for target in self.targets])
        changes: Changes = {}
        started = time.monotonic()
        for number, (target, stop) in enumerate(zip(self.targets, stops, strict=True)):
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
        step, shift, left = system.solve(self._ridge)
        kernel = target.slim
        mine = changes.setdefault(target.path, {})
        mine[kernel.attribute] = kernel.value + kernel.from_matrix(step)
        getattr(kernel.layer, kernel.attribute).assign(mine[kernel.attribute])
        if target.norm is not None:
            norm = self._layers[target.norm]
            changes[target.norm] = {"moving_mean": np.asarray(norm.moving_mean) - shift}
            norm.moving_mean.assign(changes[target.norm]["moving_mean"])
        elif target.takes_bias:
            mine["bias"] = kernel.bias + shift
            kernel.layer.bias.assign(mine["bias"])
        return {"error": before, "error_left": left}


class _System:
    """The regression of what a layer's outputs lack on its unfolded inputs."""

    def __init__(self, target: Target, sampling: Sampling, number: int, examples: int) -> None:
        self._target = target
        self._sampling = sampling
        self._number = number
        self._examples = examples
        self._matrix = target.slim.matrix(target.slim.value)
        self._bias = target.slim.bias
        self._row_bytes = 4 * max(len(self._matrix) * self._matrix.shape[1], 1)
        self._most = sampling.most(self._matrix.shape[1])
        self._chosen: dict[int, npt.NDArray[np.int64]] = {}
        self._squares = np.zeros(2)
        self.sums = Sums(*self._matrix.shape)
        self.calls = len(target.pairs)
        behind = target.behind
        self._rows: list[_Rows] | None = None
        if behind is not None and behind.is_flat_somewhere:
            self._rows = []
            kept = self._row_bytes + 4 * _KEPT_OF_FILTERS * len(target.filters)
            self._most = min(self._most, max(_ROWS_BYTES // kept, 1))

    def look(self, call: int, batch: MicroBatch, values: Values) -> None:
        """Adds the positions of one micro-batch at one call of the layer."""
        target, pair = self._target, self._target.pairs[call]
        slim, dense = (tf.cast(values[key], tf.float32) for key in target.looks_at(pair))
        for positions in self._parts(call, batch, slim.shape):
            unfolded = target.slim.unfolded(slim, positions)
            wanted = tf.gather(target.wanted(dense, positions), target.filters, axis=1)
            outputs = products(unfolded, self._matrix)
            if self._bias is not None:
                outputs += self._bias
            lacks = wanted - outputs
            behind = target.behind
            if behind is not None:
                lacks += behind.lacks(values, positions)
            centered = self.sums.add(unfolded, by_group(lacks, len(self._matrix)))
            if behind is not None and self._rows is not None:
                rows = _Rows(centered, outputs, lacks, *behind.range(values, positions))
                self._rows.append(rows)
                lacks = rows.lacks_seen()
            self._squares += [float(tf.reduce_sum(tf.square(t))) for t in (lacks, wanted)]

    def solve(self, ridge: float) -> tuple[Floats, Floats, float]:
        """What to add to the kernel's matrix, and to the mean of each filter.

        Returns:
            Both, and the error that is left, in the unit of `relative_error`.
        """
        step, shift = self.sums.solve(ridge)
        shift = shift.reshape(-1)
        if self._rows is None:
            left = self.sums.mean_square_left(step) * self.sums.count * len(shift)
        else:
            step, shift, left = self._for_what_is_seen(step, shift, ridge)
        return step, shift, self._relative(left)

    def relative_error(self) -> float:
        """Root mean square of what is lacking, relative to that of what is wanted."""
        return self._relative(self._squares[0])

    def _relative(self, lacks: float) -> float:
        wanted = self._squares[1]
        return float(np.sqrt(lacks / wanted if wanted > 0 else lacks))

    def _for_what_is_seen(
        self, step: Floats, shift: Floats, ridge: float
    ) -> tuple[Floats, Floats, float]:
        """The solution for the outputs that the activation behind the layer tells apart.

        What is wanted where the activation is flat is what is nearest to the present outputs, so
        that the regression is repeated, with the same Gram matrix: each time the error becomes
        smaller (majorization: the regression's error touches the true one from above).
        """
        lacks, left = self._lacks_seen(step, shift)
        if not left < self._squares[0]:
            step, shift = np.zeros_like(step), np.zeros_like(shift)
            lacks, left = self._lacks_seen(step, shift)
        for _ in range(_ROUNDS):
            self.sums.replace_targets(
                (rows.centered, by_group(part, len(self._matrix)))
                for rows, part in zip(self._rows or (), lacks, strict=True)
            )
            further, by = self.sums.solve(ridge)
            new = step + _RELAXATION * further, shift + _RELAXATION * by.reshape(-1)
            lacks, error = self._lacks_seen(*new)
            if not error < left:
                break
            (step, shift), before, left = new, left, error
            if left > _ENOUGH * before:
                break
        return step, shift, left

    def _lacks_seen(self, step: Floats, shift: Floats) -> tuple[list[tf.Tensor], float]:
        """What is lacking with a changed kernel and mean, and the sum of its squares."""
        shift = shift + (self.sums.origin @ step).reshape(-1)
        step, shift = step.astype(np.float32), shift.astype(np.float32)
        lacks = [rows.lacks_seen(step, shift) for rows in self._rows or ()]
        return lacks, float(sum(tf.reduce_sum(tf.square(part)) for part in lacks))

    def _parts(
        self, call: int, batch: MicroBatch, shape: tuple[int, ...]
    ) -> list[npt.NDArray[np.int64]]:
        """The chosen positions of a micro-batch, counted within it, in parts of bounded size."""
        of_example = int(np.prod(self._target.slim.output_positions(shape)))
        if call not in self._chosen:
            self._chosen[call] = self._sampling.choose(
                of_example * self._examples, -(-self._most // self.calls), self._number, call
            )
        chosen = self._chosen[call]
        first, last = np.searchsorted(chosen, [batch.start * of_example, batch.stop * of_example])
        mine = chosen[first:last] - batch.start * of_example
        return in_parts(mine, self._row_bytes)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some positions of a layer whose reader does not tell all outputs apart.

    Attributes:
        centered: what they see less `Sums.origin`, (groups, positions, inputs).
        outputs: of the layer as it is.
        lacks: what would make them right.
        low, high: outputs below and above are all the same.
    """

    centered: tf.Tensor
    outputs: tf.Tensor
    lacks: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor | None

    def lacks_seen(self, step: Any = None, shift: Any = 0.0) -> tf.Tensor:
        """What is lacking of outputs that the reader cannot tell from right ones."""
        now = self.outputs
        if step is not None:
            now += products(self.centered, step) + shift
        return matched(self.outputs + self.lacks, now, self.low, self.high) - now


def _advance(stop: Stop, batch: MicroBatch, system: _System) -> None:
    """Takes a micro-batch to the next layer, and lets go of the tensors that nobody needs."""
    values = batch.values()
    for step in stop.before:
        step.run(values)
    everything = dict(values) if stop.beside else values
    for step in stop.beside:
        step.run(everything)
    for call in range(system.calls):
        system.look(call, batch, everything)
    batch.keep({key: value for key, value in values.items() if key in stop.needed_later})
