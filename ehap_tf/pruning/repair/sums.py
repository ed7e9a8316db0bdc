"""Residual sums behind a layer: it can make up for what the other branches of its sum lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import batch_norm_coefficients
from ehap_tf.pruning.repair.kernels import rows_at
from ehap_tf.pruning.repair.walk import Key, Program, Step, Values


@dataclasses.dataclass(frozen=True)
class Branch:
    """A layer's way into a sum.

    Attributes:
        norm: the BatchNorm on the way, if there is one.
        places: for each filter its channel in the sum.
        others: what else is summed.
    """

    norm: tf_keras.layers.Layer | None
    places: npt.NDArray[np.int64]
    others: tuple[Key, ...]


@dataclasses.dataclass(frozen=True)
class SumBehind:
    """The same sum in both networks, with what else is summed.

    Attributes:
        slim: the way in the slim network.
        dense: the way in the dense one.
        filters: which of the dense layer's filters the slim one has.
    """

    slim: Branch
    dense: Branch
    filters: npt.NDArray[np.int64]

    @property
    def reads(self) -> list[Key]:
        """The tensors to look at."""
        return [*self.slim.others, *self.dense.others]

    def lacks(self, values: Values, positions: npt.NDArray[np.int64]) -> tf.Tensor:
        """What the other branches lost, in units of the layer's outputs, one row each position."""
        dense, slim = (
            tf.add_n([tf.cast(rows_at(values[key], positions), tf.float32) for key in side.others])
            for side in (self.dense, self.slim)
        )
        lost = tf.gather(dense, self.dense.places[self.filters], axis=1)
        lost -= tf.gather(slim, self.slim.places, axis=1)
        if self.slim.norm is None:
            return lost
        scale, _ = batch_norm_coefficients(self.slim.norm)
        return tf.math.divide_no_nan(lost, tf.cast(scale, tf.float32))


def branch_of(
    step: Step, readers: Mapping[Key, Sequence[Step | None]], filters: int
) -> Branch | None:
    """The way from a layer into a sum, by a BatchNorm and a scatter at most."""
    norm, places, key = None, np.arange(filters), step.outputs[0]
    while True:
        behind = readers[key]
        if len(behind) != 1 or behind[0] is None:
            return None
        step = behind[0]
        layer = step.layer
        if type(layer) is tf_keras.layers.Add:
            shapes = {tuple(tensor.shape) for tensor in step.node.keras_inputs}
            if len(shapes) > 1:
                return None  # something is broadcast
            others = [other for other in step.inputs if other != key]
            return Branch(norm, places, tuple(others)) if others else None
        if type(layer) is tf_keras.layers.BatchNormalization and norm is None:
            if step.training or list(layer.axis) != [step.node.outputs.shape.rank - 1]:
                return None
            norm = layer
        elif isinstance(layer, ScatterChannels):
            places = np.asarray(layer.positions)[places]
        else:
            return None
        key = step.outputs[0]


def sum_behind(
    slim: Branch | None,
    dense: Branch | None,
    filters: npt.NDArray[np.int64],
    program: Program,
    unsolved: Collection[Step],
) -> SumBehind | None:
    """The sum that two ways of one layer lead into, if its other branches are there before.

    Args:
        slim: the way in the slim network.
        dense: the way in the dense one.
        filters: which of the dense layer's filters the slim one has.
        program: the slim network.
        unsolved: calls of layers that are yet to be solved for.
    """
    if slim is None or dense is None:
        return None
    makers = {key: step for step in program.steps for key in step.outputs}
    waiting, seen = list(slim.others), set()
    while waiting:
        step = makers.get(waiting.pop())
        if step is None or step in seen:
            continue
        # What is repaired later makes up for this layer.
        if step in unsolved or slim.norm is step.layer:
            return None
        seen.add(step)
        waiting.extend(step.inputs)
    return SumBehind(slim, dense, filters)
