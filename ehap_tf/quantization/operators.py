"""TensorFlow operators in a functional model (`x * 2`, `tf.nn.relu(x)`) as named Keras layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.quantization.builder import GraphBuilder

layers = tf_keras.layers

Rule = Callable[..., Any]


def rewrite_operator(
    builder: GraphBuilder,
    layer: tf_keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Returns what a `TFOpLambda` computes as layers that quantization knows, or None.

    Args:
        builder: makes the new layers.
        layer: Keras's layer around one TensorFlow function.
        args: of the call, symbolic tensors among them.
        kwargs: likewise.
    """
    rule = OPERATORS.get(str(layer.symbol).rsplit(".", 1)[-1])
    if rule is None:
        return None
    arguments = dict(inspect.signature(layer.function).bind(*args, **kwargs).arguments)
    arguments.pop("name", None)
    # The first has a name of its own in almost every function.
    x = arguments.pop(next(iter(arguments)))
    return rule(builder, layer.name, x, **arguments)


def _is_symbolic(value: Any) -> bool:
    return hasattr(value, "_keras_history")


def _is_by_channel(constant: np.ndarray, x: Any) -> bool:
    """Whether a constant acts alike on every position: a scalar, or a value for each channel."""
    return constant.size == 1 or (
        constant.size == x.shape[-1] and constant.shape[-1] == x.shape[-1]
    )


def _arithmetic(merge: str, by_constant: Callable[..., tuple[Any, Any] | None]) -> Rule:
    """A rule for `x ∘ y`: a merge layer for two tensors, a scale and a shift with a constant.

    Args:
        merge: name of the layer for two tensors; "" where there is none.
        by_constant: (constant, constant_is_first) -> (scale, shift), or None.
    """

    def rule(builder: GraphBuilder, name: str, x: Any, y: Any) -> Any:
        if _is_symbolic(x) and _is_symbolic(y):
            if merge == "Multiply":
                return builder.multiply(x, y, name)
            return builder.call(getattr(layers, merge), name, [x, y]) if merge else None
        tensor, constant = (x, y) if _is_symbolic(x) else (y, x)
        constant = np.asarray(constant, np.float64)
        affine = by_constant(constant, not _is_symbolic(x))
        if affine is None or not _is_by_channel(constant, tensor):
            return None
        scale, shift = affine
        return builder.affine(tensor, np.ravel(scale), np.ravel(shift), name)

    return rule


def _activation(function: Any) -> Rule:
    def rule(builder: GraphBuilder, name: str, x: Any, **options: Any) -> Any:
        return None if options else builder.activate(function, x, name)

    return rule


def _reduce_mean(
    builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
) -> Any:
    axes = sorted(np.ravel(axis).tolist()) if axis is not None else None
    if x.shape.rank != 4 or axes not in ([1, 2], [-3, -2]):
        return None
    return builder.call(layers.GlobalAveragePooling2D, name, x, keepdims=bool(keepdims))


def _reshape(builder: GraphBuilder, name: str, x: Any, shape: Any) -> Any:
    if _is_symbolic(shape) or any(_is_symbolic(part) for part in tf.nest.flatten(shape)):
        return None
    target = [int(size) for size in np.ravel(shape)][1:]
    return builder.call(layers.Reshape, name, x, target)


def _concat(builder: GraphBuilder, name: str, values: Any, axis: Any) -> Any:
    if not all(_is_symbolic(value) for value in values):
        return None
    return builder.call(layers.Concatenate, name, values, int(axis))


def _identity(builder: GraphBuilder, name: str, x: Any) -> Any:
    del builder, name
    return x


def _cast(builder: GraphBuilder, name: str, x: Any, dtype: Any) -> Any:
    return _identity(builder, name, x) if tf.as_dtype(dtype).is_floating else None


_ADD = _arithmetic("Add", lambda c, first: (1.0, c))
_MULTIPLY = _arithmetic("Multiply", lambda c, first: (c, 0.0))
_SUBTRACT = _arithmetic("Subtract", lambda c, first: (-1.0, c) if first else (1.0, -c))
_DIVIDE = _arithmetic("", lambda c, first: None if first else (1.0 / c, 0.0))

OPERATORS: dict[str, Rule] = {
    "add": _ADD,
    "add_v2": _ADD,
    "cast": _cast,
    "concat": _concat,
    "divide": _DIVIDE,
    "identity": _identity,
    "maximum": _arithmetic("Maximum", lambda c, first: None),
    "minimum": _arithmetic("Minimum", lambda c, first: None),
    "mul": _MULTIPLY,
    "multiply": _MULTIPLY,
    "reduce_mean": _reduce_mean,
    "relu": _activation(tf_keras.activations.relu),
    "relu6": _activation(tf.nn.relu6),
    "reshape": _reshape,
    "sigmoid": _activation(tf_keras.activations.sigmoid),
    "silu": _activation(tf_keras.activations.swish),
    "stop_gradient": _identity,
    "sub": _SUBTRACT,
    "subtract": _SUBTRACT,
    "swish": _activation(tf_keras.activations.swish),
    "tanh": _activation(tf_keras.activations.tanh),
    "truediv": _DIVIDE,
}
"""Last part of the operator's name -> its rule; a rule returns None where it does not apply."""
