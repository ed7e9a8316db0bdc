"""Rules of the operators that compute element by element: arithmetic, functions, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import is_symbolic, made_by
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.integer_kernels import keeps_grid
from ehap_tf.quantization.integer_rules.layer_rules import sum_of
from ehap_tf.quantization.integer_rules.own_layers import EhapStopGradient

layers = tf_keras.layers

Rule = Callable[..., Any]

LARGEST_POWER = 8
"""Whole powers are products; each rounds once more."""


def _is_by_channel(constant: np.ndarray, x: Any) -> bool:
    """Whether a constant acts alike on every position: a scalar, or a value for each channel."""
    return constant.size == 1 or (
        constant.size == x.shape[-1] and constant.shape[-1] == x.shape[-1]
    )


def _fits(constant: np.ndarray, x: Any) -> bool:
    """Whether a constant spreads over `x` without making it larger."""
    shape = tuple(x.shape)
    if constant.ndim > len(shape) or (constant.ndim == len(shape) and constant.shape[0] != 1):
        return False
    sizes = zip(reversed(constant.shape), reversed(shape), strict=False)
    return all(size in (1, other) for size, other in sizes)


def _arithmetic(
    merge: str, operator: str, by_constant: Callable[..., tuple[Any, Any] | None]
) -> Rule:
    """A rule for `x ∘ y`: a merge layer for two tensors, a scale and a shift with a constant.

    Args:
        merge: name of the layer for two tensors.
        operator: of `INTEGER_OPERATORS`, for a constant that has a value for each position.
        by_constant: (constant, constant_is_first) -> (scale, shift), or None.
    """

    def rule(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
        if is_symbolic(x) and is_symbolic(y):
            if x.shape.rank != y.shape.rank:
                return None
            if merge == "Multiply":
                return builder.multiply(x, y, name)
            return builder.call(getattr(layers, merge), name, [x, y])
        tensor, constant = (x, y) if is_symbolic(x) else (y, x)
        constant = np.asarray(constant, np.float64)
        affine = by_constant(constant, not is_symbolic(x))
        if affine is not None and _is_by_channel(constant, tensor):
            scale, shift = affine
            return builder.affine(tensor, np.ravel(scale), np.ravel(shift), name)
        return builder.operate(operator, name, x, y) if _fits(constant, tensor) else None

    return rule


_add = _arithmetic("Add", "add", lambda c, first: (1.0, c))
_multiply = _arithmetic("Multiply", "multiply", lambda c, first: (c, 0.0))
_subtract = _arithmetic("Subtract", "subtract", lambda c, first: (-1.0, c) if first else (1.0, -c))
_maximum = _arithmetic("Maximum", "maximum", lambda c, first: None)
_minimum = _arithmetic("Minimum", "minimum", lambda c, first: None)


# -- quotients and powers -----------------------------------------------------------------------


def _divide(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
    """A quotient by the reciprocal square root: TFLite's DIV stops at a zero.

    The largest value of the reciprocal root stands for that of a zero, as if that were one step.
    x / sqrt(y) is x times the reciprocal root of y, once: two roundings fewer than by that of
    sqrt(y), twice.
    """
    if not is_symbolic(y):
        return _multiply(builder, name, x, 1.0 / np.asarray(y, np.float64))
    if is_symbolic(x) and x.shape.rank != y.shape.rank:
        return None
    square = _square_under_root(y)
    if square is not None:
        return _multiply(builder, name, x, builder.operate("rsqrt", f"{name}_rsqrt", square))
    if _is_not_negative(y):
        root = builder.operate("rsqrt", f"{name}_rsqrt", y)
        if not is_symbolic(x):
            return _multiply(builder, name, builder.multiply(root, root, f"{name}_reciprocal"), x)
        return builder.multiply(builder.multiply(x, root, f"{name}_part"), root, name)
    # x / y = (x / |y|) sign(y)
    square = builder.multiply(y, y, f"{name}_square")
    root = builder.operate("rsqrt", f"{name}_rsqrt", square)
    sign = builder.multiply(y, root, f"{name}_sign")
    size = builder.multiply(x, root, f"{name}_size") if is_symbolic(x) else root
    quotient = builder.multiply(size, sign, f"{name}_quotient")
    return quotient if is_symbolic(x) else _multiply(builder, name, quotient, x)


def _divide_no_nan(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
    """A product with the reciprocals of constants; of tensors it would not be 0 where `y` is."""
    if is_symbolic(y):
        return None
    y = np.asarray(y, np.float64)
    return _multiply(builder, name, x, np.divide(1.0, y, out=np.zeros_like(y), where=y != 0.0))


def _reciprocal(builder: GraphBuilder, name: str, x: Any) -> Any:
    return _divide(builder, name, 1.0, x)


def _square_under_root(x: Any) -> Any:
    """What a tensor of the new graph is the square root of; None where it is none."""
    node, _ = made_by(x)
    is_root = layer_kind(node.layer) == "EhapOperator" and node.layer.operator == "sqrt"
    return node.keras_inputs[0] if is_root else None


def _is_not_negative(x: Any) -> bool:
    """Whether a tensor of the new graph holds no negative values, whatever the input."""
    node, _ = made_by(x)
    layer, sources = node.layer, node.keras_inputs
    kind = layer_kind(layer)
    if kind == "Activation":
        return layer.activation in (
            tf_keras.activations.sigmoid,
            tf_keras.activations.get("sigmoid"),
        )
    if kind == "EhapOperator" and layer.operator in ("abs", "exp", "sqrt", "rsqrt"):
        return True
    if kind in ("ReLU", "Softmax"):
        return kind == "Softmax" or not layer.negative_slope
    if kind == "Multiply" and len({id(source) for source in sources}) == 1:
        return True
    if kind == "DepthwiseConv2D" and layer.kernel_size == (1, 1) and not layer.trainable:
        if any(np.any(weight < 0.0) for weight in layer.get_weights()):
            return False
    elif not (
        keeps_grid(layer)
        or kind in ("Add", "Multiply", "GlobalAveragePooling2D", "EhapMean")
        or (kind == "EhapOperator" and layer.operator in ("add", "reduce_mean", "reduce_sum"))
    ):
        return False
    has_negative = kind == "EhapOperator" and any(np.any(w < 0.0) for w in layer.get_weights())
    return not has_negative and bool(sources) and all(map(_is_not_negative, sources))


def _pow(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
    """Products for whole exponents, roots for halves, exp for a power of a constant."""
    if not is_symbolic(x):
        base = np.asarray(x, np.float64)
        if base.size != 1 or np.any(base <= 0.0):
            return None
        scaled = _multiply(builder, f"{name}_log", y, float(np.log(base.ravel()[0])))
        return builder.operate("exp", name, scaled)
    if is_symbolic(y) or np.size(y) != 1:
        return None
    exponent = float(np.ravel(y)[0])
    if exponent != int(2 * exponent) / 2 or abs(exponent) > LARGEST_POWER:
        return None
    if exponent == -0.5:
        return builder.operate("rsqrt", name, x)
    if exponent < 0.0:
        return _reciprocal(builder, name, _pow(builder, f"{name}_power", x, -exponent))
    factors = [x] * int(exponent)
    if exponent != int(exponent):
        factors.append(builder.operate("sqrt", f"{name}_sqrt" if factors else name, x))
    if not factors:
        return None
    product = factors[0]
    for index, factor in enumerate(factors[1:], 2):
        product = builder.multiply(product, factor, f"{name}_{index}")
    return product


def _square(builder: GraphBuilder, name: str, x: Any) -> Any:
    return builder.multiply(x, x, name)


# -- functions ----------------------------------------------------------------------------------


def _activation(function: Any) -> Rule:
    def rule(builder: GraphBuilder, name: str, x: Any, **options: Any) -> Any:
        return None if options else builder.activate(function, x, name)

    return rule


def _of_one(operator: str) -> Rule:
    """A rule for an operator of `INTEGER_OPERATORS` on one tensor."""

    def rule(builder: GraphBuilder, name: str, x: Any) -> Any:
        return builder.operate(operator, name, x)

    return rule


def _of_two(operator: str) -> Rule:
    """The same on two tensors."""

    def rule(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
        if not (is_symbolic(x) and is_symbolic(y) and x.shape.rank == y.shape.rank):
            return None
        return builder.operate(operator, name, x, y)

    return rule


def _gelu(builder: GraphBuilder, name: str, x: Any, approximate: bool = False) -> Any:
    if approximate:
        return builder.operate("gelu", name, x, approximate=True)
    return builder.activate(tf_keras.activations.gelu, x, name)


def _leaky_relu(builder: GraphBuilder, name: str, x: Any, alpha: float = 0.2) -> Any:
    return builder.call(layers.LeakyReLU, name, x, float(alpha))


def _clip(
    builder: GraphBuilder, name: str, x: Any, clip_value_min: Any, clip_value_max: Any
) -> Any:
    limits = [clip_value_min, clip_value_max]
    if any(map(is_symbolic, limits)) or any(np.size(limit) != 1 for limit in limits):
        return None
    low, high = (float(np.ravel(limit)[0]) for limit in limits)
    if not low and high > 0.0:
        return builder.relu(x, name, high)
    return builder.operate("minimum", name, builder.operate("maximum", f"{name}_low", x, low), high)


def _negative(builder: GraphBuilder, name: str, x: Any) -> Any:
    return builder.affine(x, -1.0, 0.0, name)


def _add_n(builder: GraphBuilder, name: str, inputs: Any) -> Any:
    are_tensors = isinstance(inputs, list | tuple) and all(map(is_symbolic, inputs))
    return sum_of(builder, name, list(inputs)) if are_tensors and len(inputs) > 1 else None


def _identity(builder: GraphBuilder, name: str, x: Any) -> Any:
    del builder, name
    return x


def _stop_gradient(builder: GraphBuilder, name: str, x: Any) -> Any:
    # Keras' own takes a list as well.
    return tf.nest.map_structure(lambda y: builder.call(EhapStopGradient, name, y), x)


# -- truth values -------------------------------------------------------------------------------


def _comparison(operator: str, turned: bool) -> Rule:
    """A rule for `x > y` and its kin: the sign of a difference.

    The kernels that compare would round a constant to the grid of the tensor; a difference has zero
    on its grid.

    Args:
        operator: says which sign.
        turned: whether that of y - x.
    """

    def rule(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
        if turned:
            x, y = y, x
        if not is_symbolic(y) and not np.any(np.asarray(y)):
            difference = x
        else:
            difference = _subtract(builder, f"{name}_difference", x, y)
        return None if difference is None else builder.operate(operator, name, difference)

    return rule


def _where(builder: GraphBuilder, name: str, condition: Any, x: Any = None, y: Any = None) -> Any:
    given = [value for value in (condition, x, y) if is_symbolic(value)]
    constants = [np.asarray(v) for v in (condition, x, y) if not is_symbolic(v) and v is not None]
    if x is None or y is None or len({value.shape.rank for value in given}) != 1:
        return None
    if not all(_fits(constant, given[0]) for constant in constants):
        return None
    return builder.operate("where", name, condition, x, y)


def _sign(builder: GraphBuilder, name: str, x: Any) -> Any:
    is_not_negative = builder.operate("is_not_negative", f"{name}_below", x)
    below = builder.operate("where", f"{name}_steps", is_not_negative, 0.0, -1.0)
    return builder.operate(
        "where", name, builder.operate("is_positive", f"{name}_above", x), 1.0, below
    )


def _cast(builder: GraphBuilder, name: str, x: Any, dtype: Any) -> Any:
    if not tf.as_dtype(dtype).is_floating:
        return None
    if x.dtype == tf.bool:
        return builder.operate("where", name, x, 1.0, 0.0)
    return x if x.dtype.is_floating else None


ARITHMETIC_OPERATORS: dict[str, Rule] = {
    "abs": _of_one("abs"),
    "add": _add,
    "add_n": _add_n,
    "cast": _cast,
    "clip_by_value": _clip,
    "divide": _divide,
    "divide_no_nan": _divide_no_nan,
    "elu": _activation(tf.nn.elu),
    "exp": _of_one("exp"),
    "gelu": _gelu,
    "greater": _comparison("is_positive", turned=False),
    "greater_equal": _comparison("is_not_negative", turned=False),
    "identity": _identity,
    "leaky_relu": _leaky_relu,
    "less": _comparison("is_positive", turned=True),
    "less_equal": _comparison("is_not_negative", turned=True),
    "log": _of_one("log"),
    "logical_and": _of_two("logical_and"),
    "logical_not": _of_one("logical_not"),
    "logical_or": _of_two("logical_or"),
    "maximum": _maximum,
    "minimum": _minimum,
    "multiply": _multiply,
    "negative": _negative,
    "pow": _pow,
    "reciprocal": _reciprocal,
    "relu": _activation(tf_keras.activations.relu),
    "relu6": _activation(tf.nn.relu6),
    "rsqrt": _of_one("rsqrt"),
    "sigmoid": _activation(tf_keras.activations.sigmoid),
    "selu": _activation(tf.nn.selu),
    "sign": _sign,
    "silu": _activation(tf_keras.activations.swish),
    "softplus": _activation(tf.math.softplus),
    "softsign": _activation(tf.nn.softsign),
    "sqrt": _of_one("sqrt"),
    "square": _square,
    "squared_difference": _of_two("squared_difference"),
    "stop_gradient": _stop_gradient,
    "subtract": _subtract,
    "tanh": _activation(tf_keras.activations.tanh),
    "where": _where,
}
"""Last part of the operator's name -> its rule; a rule returns None where it does not apply."""
