"""What comes behind a layer: a sum that it can complete, an activation that sees half of it.

The last branch of a residual sum makes up for what the other branches lost. And where a ReLU reads
a layer, outputs below zero are all the same: what the dense network has there need not be matched,
as long as the slim one stays below zero, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import (
    batch_norm_coefficients,
    computes_like,
    is_plain_batch_norm,
    relu_limit,
    rows_at,
    traits_of,
)
from ehap_tf.models.kinds import function_kind
from ehap_tf.pruning.repair.walk import Key, Program, Step, Values

Range = tuple[float, float]
"""Where an activation is not flat: its outputs are the same for all inputs below, or above."""

EVERYTHING: Range = (-np.inf, np.inf)

_RANGES: dict[str, Range] = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


def seen_range(layer: tf_keras.layers.Layer) -> Range:
    """The inputs of an activation layer, or of a layer's own activation, that it tells apart."""
    limit = relu_limit(layer)
    if limit is not None:
        return 0.0, limit
    return _RANGES.get(function_kind(getattr(layer, "activation", None)), EVERYTHING)


@dataclasses.dataclass(frozen=True)
class Way:
    """From a layer to what reads it.

    Attributes:
        norm: the BatchNorm on the way, if there is one.
        places: for each filter its channel at the end of the way.
        others: what is added to it on the way; empty where nothing is.
        seen: the range that the activation at the end tells apart.
    """

    norm: tf_keras.layers.Layer | None
    places: npt.NDArray[np.int64]
    others: tuple[Key, ...]
    seen: Range


@dataclasses.dataclass(frozen=True)
class Behind:
    """The same way in both networks.

    Attributes:
        slim: the way in the slim network.
        dense: the way in the dense one.
        filters: which of the dense layer's filters the slim one has.
    """

    slim: Way
    dense: Way
    filters: npt.NDArray[np.int64]

    @property
    def reads(self) -> list[Key]:
        """The tensors to look at."""
        return [*self.slim.others, *self.dense.others]

    @property
    def is_flat_somewhere(self) -> bool:
        """Whether some outputs of the layer are the same to its reader."""
        return self.slim.seen != EVERYTHING

    def lacks(self, values: Values, positions: npt.NDArray[np.int64]) -> tf.Tensor:
        """What the other branches lost, in units of the layer's outputs, one row each position."""
        if not self.slim.others:
            return tf.zeros([1, len(self.filters)])
        lost = tf.gather(_summed(self.dense, values, positions), self.filters, axis=1)
        lost -= _summed(self.slim, values, positions)
        return tf.math.divide_no_nan(lost, self._norm()[0])

    def range(
        self, values: Values, positions: npt.NDArray[np.int64]
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The lowest and highest outputs of the layer that are told apart.

        Returns:
            Two tensors, (positions, filters) or (1, filters), in units of the layer's outputs; None
            where no output is too high.
        """
        scale, offset = self._norm()
        if self.slim.others:
            offset += _summed(self.slim, values, positions)
        low, high = ((end - offset) / scale for end in self.slim.seen)
        if self.slim.seen[1] == np.inf and bool(tf.reduce_all(scale > 0)):
            return low, None
        # What a BatchNorm multiplies by zero is of no consequence: nothing of it is left out.
        below, above = EVERYTHING
        low, high = tf.where(scale < 0, high, low), tf.where(scale < 0, low, high)
        return tf.where(scale == 0, below, low), tf.where(scale == 0, above, high)

    def _norm(self) -> tuple[Any, Any]:
        """The scale and offset of the way, float32."""
        norm = self.slim.norm
        if norm is None:
            return tf.ones(len(self.filters)), tf.zeros(len(self.filters))
        scale, offset = batch_norm_coefficients(norm)
        return tf.cast(scale, tf.float32), tf.cast(offset, tf.float32)


def _summed(way: Way, values: Values, positions: npt.NDArray[np.int64]) -> tf.Tensor:
    """What is added to the layer on a way, at its filters."""
    others = [tf.cast(rows_at(values[key], positions), tf.float32) for key in way.others]
    return tf.gather(tf.add_n(others), way.places, axis=1)


def matched(
    wanted: tf.Tensor, outputs: tf.Tensor, low: tf.Tensor, high: tf.Tensor | None
) -> tf.Tensor:
    """The outputs nearest to `outputs` that are the same to the reader as the wanted ones.

    Args:
        wanted: what would be right.
        outputs: what there is.
        low: see `Behind.range`.
        high: see there, too.
    """
    nearest = tf.where(wanted <= low, tf.minimum(outputs, low), wanted)
    if high is None:
        return nearest
    return tf.where(wanted >= high, tf.maximum(outputs, high), nearest)


def way_behind(step: Step, readers: Mapping[Key, Sequence[Step | None]], filters: int) -> Way:
    """The way from a layer's call by a BatchNorm, a scatter, a sum and an activation at most."""
    norm, places, key = None, np.arange(filters), step.outputs[0]
    scattered = False
    others: tuple[Key, ...] = ()
    seen = seen_range(step.layer)
    if function_kind(getattr(step.layer, "activation", None)) != "linear":
        return Way(norm, places, others, seen)
    while len(readers[key]) == 1 and (reader := readers[key][0]) is not None:
        step, layer = reader, reader.layer
        is_first = norm is None and not others and not scattered
        if traits_of(layer).adds == "plain" and not others:
            shapes = {tuple(tensor.shape) for tensor in step.node.keras_inputs}
            others = tuple(other for other in step.inputs if other != key)
            if len(shapes) > 1 or not others:  # something is broadcast, or added to itself
                return Way(norm, places, (), EVERYTHING)
        elif is_plain_batch_norm(layer) and is_first:
            if step.training or list(layer.axis) != [step.node.outputs.shape.rank - 1]:
                break
            norm = layer
        elif isinstance(layer, ScatterChannels) and not others:
            places, scattered = np.asarray(layer.positions)[places], True
        else:
            if relu_limit(layer) is not None or computes_like(layer, tf_keras.layers.Activation):
                seen = seen_range(layer)
            break
        key = step.outputs[0]
    return Way(norm, places, others, seen)


def behind_both(
    slim: Way,
    dense: Way,
    filters: npt.NDArray[np.int64],
    program: Program,
    unsolved: Collection[Step],
) -> Behind | None:
    """The way behind a layer, if it says something, and if what is added to it is there before.

    Args:
        slim: the way in the slim network.
        dense: the way in the dense one.
        filters: which of the dense layer's filters the slim one has.
        program: the slim network.
        unsolved: calls of layers that are yet to be solved for.
    """
    if bool(slim.others) != bool(dense.others) or slim.seen != dense.seen:
        return None
    if not slim.others and slim.seen == EVERYTHING:
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
    return Behind(slim, dense, filters)
