"""The network in float and the same network in integers, computed call by call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import replay
from ehap_tf.quantization.apply.calibration import CALIBRATION_EXAMPLES
from ehap_tf.quantization.integer_rules.integer_kernels import multiplies
from ehap_tf.quantization.integer_rules.wrappers import unwrapped
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph

BATCH = 64
"""Examples that are computed at once."""
LARGEST_TENSOR = 2**24
"""Floats of one tensor over all examples: 64 MB, of which a network has some alive at a time."""
FEWEST_EXAMPLES = 4
"""Of inputs so large that more would not fit; their means are over many positions."""


def examples_in_memory(qat: tf_keras.Model) -> int:
    """How many examples `SideBySide` can hold the activations of."""
    shapes = [y.shape[1:] for layer in qat.layers for y in tf.nest.flatten(layer.get_output_at(0))]
    largest = max(int(np.prod([size or 1 for size in shape])) for shape in shapes)
    return max(FEWEST_EXAMPLES, min(CALIBRATION_EXAMPLES, LARGEST_TENSOR // largest))


def batched(inputs: Sequence[np.ndarray]) -> list[list[tf.Tensor]]:
    """Of each input its batches."""
    batches = -(-len(inputs[0]) // BATCH)
    return [[tf.constant(part) for part in np.array_split(array, batches)] for array in inputs]


@dataclasses.dataclass
class Sides:
    """A tensor of both networks, in batches."""

    exact: list[tf.Tensor]
    rounded: list[tf.Tensor]


Mend = Callable[["SideBySide", Any, Sides], None]
"""Changes a wrapped convolution or Dense, given its inputs, before it is computed."""


class SideBySide:
    """Walks both networks, with a stop at each convolution and Dense to change something of it.

    What comes behind sees the change, so that no error is made up for twice.

    Attributes:
        exact: the network as it was in float.
        rounded: the network in integers, as it is by now.

    Args:
        qat: a calibrated model from `quantize`.
    """

    def __init__(self, qat: tf_keras.Model) -> None:
        self.exact = IntegerGraph(qat, rounding=False)
        self.rounded = IntegerGraph(qat)
        self._qat = qat

    def walk(self, inputs: Sequence[np.ndarray], mends: Sequence[Mend]) -> list[Sides]:
        """Lets each of `mends` change each convolution and Dense, in the order of computation.

        Args:
            inputs: one array for each input of the model; the activations of all examples are held
                in memory, see `examples_in_memory`.
            mends: what is done at each stop, in this order.

        Returns:
            The outputs of the model.
        """

        def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if multiplies(unwrapped(layer)):
                for mend in mends:
                    mend(self, layer, args[0])
            return self._computed(layer, args, kwargs)

        return replay(self._qat, [Sides(parts, parts) for parts in batched(inputs)], visit)

    def _computed(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exact = _compute(self.exact, layer, args, kwargs, "exact")
        rounded = _compute(self.rounded, layer, args, kwargs, "rounded")
        flat = [
            Sides(list(ours), list(theirs))
            for ours, theirs in zip(
                zip(*(tf.nest.flatten(y) for y in exact), strict=True),
                zip(*(tf.nest.flatten(y) for y in rounded), strict=True),
                strict=True,
            )
        ]
        return tf.nest.pack_sequence_as(exact[0], flat)


def _compute(graph: IntegerGraph, layer: Any, args: Any, kwargs: Any, side: str) -> list[Any]:
    """What a call of `layer` gives on one side, for each batch."""
    values = [v for v in tf.nest.flatten((args, kwargs)) if isinstance(v, Sides)]
    results = []
    for batch in range(len(getattr(values[0], side))):

        def of_batch(value: Any, batch: int = batch) -> Any:
            return getattr(value, side)[batch] if isinstance(value, Sides) else value

        batch_args, batch_kwargs = tf.nest.map_structure(of_batch, (args, kwargs))
        results.append(graph.compute(layer, batch_args, batch_kwargs))
    return results
