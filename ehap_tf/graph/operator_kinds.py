"""What function an operator layer stands for: what tf_keras makes of `x * 2` or `tf.nn.relu(x)`.

One function has several spellings: `x * 2` is "math.multiply" or "__operators__.mul", a function of
TensorFlow 1 has "compat.v1." before its name. Here each has one kind, its TensorFlow name without
the module, and its arguments are known by name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import tf_keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

SUMS = frozenset(["add", "subtract", "maximum", "minimum", "add_n"])
"""Kinds of operators that line up several tensors, and keep a channel that is zero in all."""

PRODUCTS = frozenset(["multiply"])
"""Kinds of operators whose channels are zero where one of the tensors' is."""

QUOTIENTS = frozenset(["divide"])

MOVING = frozenset("reshape transpose squeeze expand_dims concat stack identity getitem".split())
"""Kinds of operators that do nothing but put numbers elsewhere."""

PIECEWISE_LINEAR = SUMS | frozenset(
    """abs identity clip_by_value concat split pad reshape negative reduce_mean reduce_sum
    reduce_max relu relu6 leaky_relu""".split()
)
"""Kinds of operators that are piecewise linear in their tensors, whatever the other arguments."""

_SAME = {
    "add_v2": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "neg": "negative",
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "swish": "silu",
}  # fmt: skip

_OTHERS = ("keras", "ragged", "sparse", "strings")
"""Modules whose functions have the names of others and do something else."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A call of an operator layer.

    Attributes:
        kind: as of `operator_kind`.
        arguments: what the function is called with, by the names of its parameters, in their order;
            without the operation's name and without what is its parameter's default. Of `*inputs`
            the tuple.
    """

    kind: str
    arguments: Mapping[str, Any]


def operator_symbol(layer: tf_keras.layers.Layer) -> str:
    """The TensorFlow name of the function that a layer stands for ("math.add"), else ""."""
    symbol = layer.symbol if isinstance(layer, TFOpLambda) else None
    return (symbol or "").removeprefix("compat.v1.")


def operator_kind(layer: tf_keras.layers.Layer) -> str:
    """What function a layer stands for, however it was written ("add"); "" for other layers."""
    symbol = operator_symbol(layer)
    module, _, name = symbol.rpartition(".")
    return symbol if module.partition(".")[0] in _OTHERS else _SAME.get(name, name)


def operator_of(
    layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Operator:
    """The kind and the arguments of an operator layer's call.

    Args:
        layer: an operator layer.
        args: of the call; tensors may be replaced already.
        kwargs: likewise.
    """
    signature = inspect.signature(layer.function)
    given = {
        name: value
        for name, value in signature.bind(*args, **kwargs).arguments.items()
        if name != "name" and not _is(value, signature.parameters[name].default)
    }
    return Operator(operator_kind(layer), given)


def _is(value: Any, default: Any) -> bool:
    return value is default or (
        isinstance(value, bool | int | float | str)
        and type(value) is type(default)
        and value == default
    )
