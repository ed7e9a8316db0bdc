"""The operators that the TFLite converter quantizes by itself, as one layer and one table.

The converter gives an operator its integer kernel where the ranges of what it reads and writes are
known, so that such an operator needs no computation of its own here: only the word on whose grid
its kernel writes. Each was tried by converting it alone between two quantizations: no float
operator, and outputs within a step of the emulated ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras


@dataclasses.dataclass(frozen=True)
class IntegerOperator:
    """What an operator computes and on whose grid its integer kernel writes.

    Attributes:
        function: takes the tensors and constants in order, and the options by name.
        output: "grid" (that of its only input: it moves or selects values), "one_grid" (what it
            reads, constants too, is brought to the grid that was observed on what it writes),
            "exact" (integers or truth values, which no quantization follows), or an output of
            `EhapQuantizeConfig`: "observed", "unit", "signed_unit", "log_unit".
        in_file: the function as the converter must see it, where that is not `function`: one that
            has a value and a gradient also where rounding has made a zero of its input.
        elementwise: whether it acts alike on every element.
        averages: whether it computes new values, which its kernel rounds to its input's grid.
    """

    function: Callable[..., Any]
    output: str = "observed"
    in_file: Callable[..., Any] | None = None
    elementwise: bool = False
    averages: bool = False


def _away_from_zero(x: tf.Tensor) -> tf.Tensor:
    """`x` with a 256th of its largest value in the place of zeros and negative values.

    On a grid from 0 that is one step, whose reciprocal ends the range that is observed; the file's
    kernels answer a zero with that end too.
    """
    smallest = tf.maximum(tf.stop_gradient(tf.reduce_max(x)) / 255.0, 1e-12)
    return tf.where(x > 0.0, x, smallest)


def _sqrt(x: tf.Tensor) -> tf.Tensor:
    positive = x > 0.0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))), tf.zeros_like(x))


def _where(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.cast(condition, tf.bool), x, y)


def _reshape_steps(x: tf.Tensor, shape: list[int]) -> tf.Tensor:
    return tf.reshape(x, [-1, *shape])


def _resize(x: tf.Tensor, size: list[int], method: str) -> tf.Tensor:
    return tf.image.resize(x, size, method)


def _reverse(x: tf.Tensor, axis: list[int]) -> tf.Tensor:
    """As a slice: into its REVERSE_V2 the converter folds a change of grid, which that ignores."""
    return x[tuple(slice(None, None, -1 if a in axis else 1) for a in range(x.shape.rank))]


def _mirror_pad(x: tf.Tensor, paddings: list[list[int]], mode: str) -> tf.Tensor:
    return tf.pad(x, paddings, mode)


def _pad_with(x: tf.Tensor, paddings: list[list[int]], value: float) -> tf.Tensor:
    return tf.pad(x, paddings, constant_values=value)


def _stack(*values: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.stack(values, axis)


def _einsum(*operands: tf.Tensor, equation: str) -> tf.Tensor:
    return tf.einsum(equation, *operands)


def _own(function: Callable[..., Any], in_file: Callable[..., Any] | None = None) -> Any:
    return IntegerOperator(function, in_file=in_file, elementwise=True)


def _moves(function: Callable[..., Any]) -> IntegerOperator:
    return IntegerOperator(function, "grid")


def _exact(function: Callable[..., Any], elementwise: bool = True) -> IntegerOperator:
    return IntegerOperator(function, "exact", elementwise=elementwise)


INTEGER_OPERATORS: dict[str, IntegerOperator] = {
    # One value each, on a grid of its own.
    "abs": _own(tf.abs),
    "add": _own(tf.add),
    "exp": _own(tf.exp),
    "gelu": _own(tf.nn.gelu),
    "log": _own(lambda x: tf.math.log(_away_from_zero(x)), tf.math.log),
    "multiply": _own(tf.multiply),
    "rsqrt": _own(lambda x: tf.math.rsqrt(_away_from_zero(x)), tf.math.rsqrt),
    "sqrt": _own(_sqrt, tf.sqrt),
    "squared_difference": _own(tf.math.squared_difference),
    "subtract": _own(tf.subtract),
    # One value each, chosen among those that are read.
    "maximum": IntegerOperator(tf.maximum, "one_grid", elementwise=True),
    "minimum": IntegerOperator(tf.minimum, "one_grid", elementwise=True),
    "where": IntegerOperator(_where, "one_grid", elementwise=True),
    # Truth values and places.
    "argmax": _exact(tf.argmax, elementwise=False),
    "argmin": _exact(tf.argmin, elementwise=False),
    "is_positive": _exact(lambda x: x > 0.0),
    "is_not_negative": _exact(lambda x: x >= 0.0),
    "logical_and": _exact(tf.logical_and),
    "logical_not": _exact(tf.logical_not),
    "logical_or": _exact(tf.logical_or),
    # Over axes.
    "l2_normalize": IntegerOperator(tf.nn.l2_normalize, "signed_unit"),
    "log_softmax": IntegerOperator(tf.nn.log_softmax, "log_unit"),
    "reduce_max": _moves(tf.reduce_max),
    "reduce_mean": IntegerOperator(tf.reduce_mean),
    "reduce_min": _moves(tf.reduce_min),
    "reduce_prod": IntegerOperator(tf.reduce_prod),
    "reduce_sum": IntegerOperator(tf.reduce_sum),
    # Products of tensors.
    "einsum": IntegerOperator(_einsum),
    "matmul": IntegerOperator(tf.matmul),
    # Values elsewhere.
    "depth_to_space": _moves(tf.nn.depth_to_space),
    "gather": _moves(tf.gather),
    "mirror_pad": _moves(_mirror_pad),
    "pad_with": IntegerOperator(_pad_with, "one_grid"),
    "reshape_steps": _moves(_reshape_steps),
    "resize_bilinear": IntegerOperator(_resize, "grid", averages=True),
    "resize_nearest": _moves(_resize),
    "reverse": _moves(_reverse),
    "roll": _moves(tf.roll),
    "space_to_depth": _moves(tf.nn.space_to_depth),
    "stack": IntegerOperator(_stack, "one_grid"),
    "tile": _moves(tf.tile),
}
"""Name -> operator. What the converter leaves in float is not here: elu, erf, floor, pow, sign,
sin, cumsum, add_n. Neither is DIV: its kernel stops at a zero, and overflows where a
quotient is beyond its range."""


class EhapOperator(tf_keras.layers.Layer):
    """One operator of `INTEGER_OPERATORS` on one or several tensors.

    Args:
        operator: its name in the table.
        options: arguments by name that are no tensors; JSON.
        constants: shapes of the constant tensors by their places among the arguments. The layer has
            them as weights that do not train.
    """

    def __init__(
        self,
        operator: str,
        options: Mapping[str, Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if operator not in INTEGER_OPERATORS:
            raise ValueError(
                f"operator must be one of {sorted(INTEGER_OPERATORS)}. Received: {operator!r}"
            )
        super().__init__(**kwargs)
        self.operator = operator
        self.options = dict(options or {})
        self.constants = {str(place): list(shape) for place, shape in (constants or {}).items()}
        self._values: dict[int, tf.Variable] = {}

    @property
    def of(self) -> IntegerOperator:
        """What the table says of it."""
        return INTEGER_OPERATORS[self.operator]

    @property
    def is_pointwise(self) -> bool:
        """Whether it acts alike on every position."""
        return self.of.elementwise and not any(self.constants.values())

    def build(self, input_shape: Any) -> None:
        """Makes the constants."""
        for place, shape in self.constants.items():
            self._values[int(place)] = self.add_weight(
                f"constant_{place}", shape=shape, initializer="zeros", trainable=False
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Computes the operator."""
        return self.compute(inputs, self.of.function)

    def in_file(self, inputs: Any) -> Any:
        """Computes it as the converter must see it."""
        return self.compute(inputs, self.of.in_file or self.of.function)

    def compute(self, inputs: Any, function: Callable[..., Any]) -> Any:
        """Calls `function` on the tensors and the constants, each in its place."""
        args = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        for place, value in sorted(self._values.items()):
            args.insert(place, tf.convert_to_tensor(value))
        return function(*args, **self.options)

    def round_constants(self) -> None:
        """Puts constants with a grid of their own where the converter will round them to."""
        if self.of.output != "observed":
            return
        for value in self._values.values():
            array = value.numpy()
            low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
            if low < high:
                value.assign(tf.quantization.fake_quant_with_min_max_args(array, low, high))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {"operator": self.operator, "options": self.options, "constants": self.constants}
        return {**super().get_config(), **own}


def as_json(value: Any) -> Any:
    """Numpy numbers and arrays among the options of an operator as plain ones."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return value
