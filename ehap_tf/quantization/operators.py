"""TensorFlow operators in a functional model (`x * 2`, `tf.nn.relu(x)`) as named Keras layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels, slice_entries
from ehap_tf.quantization.builder import GraphBuilder
from ehap_tf.quantization.own_layers import EhapSlice, EhapStopGradient
from ehap_tf.quantization.rules import sum_of

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
    try:
        inspect.signature(rule).bind(builder, layer.name, x, **arguments)
    except TypeError:
        return None  # An option that the rule does not know.
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


def _pool(layer: Any) -> Rule:
    """A rule for a reduction over height and width, or over the length of sequences."""

    def rule(
        builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
    ) -> Any:
        rank = x.shape.rank
        axes = sorted(a % rank for a in np.ravel(axis).tolist()) if axis is not None else None
        if rank not in (3, 4) or axes != list(range(1, rank - 1)):
            return None

        def pool(image: Any) -> Any:
            return builder.call(layer, name, image, keepdims=bool(keepdims))

        return builder.as_image(pool, x, name)

    return rule


def _reshape(builder: GraphBuilder, name: str, x: Any, shape: Any) -> Any:
    if _is_symbolic(shape) or any(_is_symbolic(part) for part in tf.nest.flatten(shape)):
        return None
    batch, *target = (int(size) for size in np.ravel(shape))
    # Anything else moves what lies in the batch axis.
    if batch not in (-1, x.shape[0]) or (batch == -1 and np.prod(target) != np.prod(x.shape[1:])):
        return None
    return builder.call(layers.Reshape, name, x, target)


def _concat(builder: GraphBuilder, name: str, values: Any, axis: Any) -> Any:
    if not all(_is_symbolic(value) for value in values):
        return None
    return builder.call(layers.Concatenate, name, values, int(axis))


def _slices(builder: GraphBuilder, name: str, x: Any, parts: list[slice]) -> Any:
    """The part of `x` within one slice for each axis but the batch."""
    indices = [part.indices(size) for part, size in zip(parts, x.shape[1:], strict=True)]
    return builder.call(EhapSlice, name, x, *zip(*indices, strict=True))


def _split(
    builder: GraphBuilder,
    name: str,
    x: Any,
    num_or_size_splits: Any,
    axis: int = 0,
    num: Any = None,
) -> Any:
    del num
    axis = int(axis) % x.shape.rank
    if not axis or _is_symbolic(num_or_size_splits):
        return None
    size = x.shape[axis]
    if np.ndim(num_or_size_splits):
        given = [int(part) for part in num_or_size_splits]
        sizes = [size - sum(given) - 1 if part < 0 else part for part in given]
    else:
        sizes = [size // num_or_size_splits] * int(num_or_size_splits)
    ends = np.cumsum(sizes).tolist()
    everything = [slice(None)] * (x.shape.rank - 1)
    return [
        _slices(
            builder,
            f"{name}_{index}",
            x,
            [*everything[: axis - 1], slice(end - part, end), *everything[axis:]],
        )
        for index, (part, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _getitem(builder: GraphBuilder, name: str, x: Any, slice_spec: Any, var: Any = None) -> Any:
    del var
    parts = slice_entries(slice_spec, x.shape.rank)
    if not all(isinstance(part, slice) and (part.step or 1) > 0 for part in parts):
        return None  # It picks single elements, adds an axis, or turns one round.
    if parts[0] != slice(None) or any(_is_symbolic(n) for p in parts for n in (p.start, p.stop)):
        return None
    return _slices(builder, name, x, parts[1:])


def _pad(
    builder: GraphBuilder,
    name: str,
    x: Any,
    paddings: Any,
    mode: str = "CONSTANT",
    constant_values: Any = 0,
) -> Any:
    if _is_symbolic(paddings) or mode.upper() != "CONSTANT" or constant_values != 0:
        return None
    batch, *image, (before, after) = np.asarray(paddings).tolist()
    if any(batch) or x.shape.rank not in (3, 4):
        return None
    if any(map(any, image)):
        height, width = image if len(image) == 2 else ((0, 0), *image)

        def zeros_around(y: Any) -> Any:
            return builder.call(layers.ZeroPadding2D, name, y, (tuple(height), tuple(width)))

        x = builder.as_image(zeros_around, x, name)
    if before or after:
        channels = x.shape[-1]
        places = range(before, before + channels)
        x = builder.call(ScatterChannels, name, x, places, before + channels + after)
    return x


def _transpose(
    builder: GraphBuilder, name: str, x: Any, perm: Any = None, conjugate: bool = False
) -> Any:
    del conjugate
    if perm is None or _is_symbolic(perm) or perm[0]:
        return None
    return builder.call(layers.Permute, name, x, tuple(int(axis) for axis in perm[1:]))


def _squeeze(builder: GraphBuilder, name: str, x: Any, axis: Any = None) -> Any:
    shape = list(x.shape)
    axes = range(1, len(shape)) if axis is None else [int(a) % len(shape) for a in np.ravel(axis)]
    kept = [n for a, n in enumerate(shape) if not (a in axes and n == 1)]
    return builder.call(layers.Reshape, name, x, kept[1:])


def _expand_dims(builder: GraphBuilder, name: str, x: Any, axis: int) -> Any:
    shape = list(x.shape)
    place = int(axis) % (len(shape) + 1)
    shape.insert(place, 1)
    return builder.call(layers.Reshape, name, x, shape[1:]) if place else None


def _leaky_relu(builder: GraphBuilder, name: str, x: Any, alpha: float = 0.2) -> Any:
    return builder.call(layers.LeakyReLU, name, x, float(alpha))


def _clip(
    builder: GraphBuilder, name: str, x: Any, clip_value_min: Any, clip_value_max: Any
) -> Any:
    if any(map(_is_symbolic, (clip_value_min, clip_value_max))) or np.any(clip_value_min):
        return None
    return builder.relu(x, name, float(clip_value_max)) if np.size(clip_value_max) == 1 else None


def _negative(builder: GraphBuilder, name: str, x: Any) -> Any:
    return builder.affine(x, -1.0, 0.0, name)


def _square(builder: GraphBuilder, name: str, x: Any) -> Any:
    return builder.multiply(x, x, name)


def _softmax(builder: GraphBuilder, name: str, x: Any, axis: Any = -1) -> Any:
    last = axis is None or int(axis) % x.shape.rank == x.shape.rank - 1
    return builder.call(layers.Softmax, name, x) if last else None


def _add_n(builder: GraphBuilder, name: str, inputs: Any) -> Any:
    are_tensors = isinstance(inputs, list | tuple) and all(map(_is_symbolic, inputs))
    return sum_of(builder, name, list(inputs)) if are_tensors and len(inputs) > 1 else None


def _resize(builder: GraphBuilder, name: str, x: Any, size: Any, method: str = "bilinear") -> Any:
    if _is_symbolic(size) or method not in ("bilinear", "nearest") or x.shape.rank != 4:
        return None
    factors = [to / at for to, at in zip(np.ravel(size).tolist(), x.shape[1:3], strict=True)]
    if any(factor != int(factor) for factor in factors):
        return None
    whole = tuple(int(factor) for factor in factors)
    return builder.call(layers.UpSampling2D, name, x, whole, interpolation=method)


def _identity(builder: GraphBuilder, name: str, x: Any) -> Any:
    del builder, name
    return x


def _stop_gradient(builder: GraphBuilder, name: str, x: Any) -> Any:
    # Keras' own takes a list as well.
    return tf.nest.map_structure(lambda y: builder.call(EhapStopGradient, name, y), x)


def _cast(builder: GraphBuilder, name: str, x: Any, dtype: Any) -> Any:
    floats = x.dtype.is_floating and tf.as_dtype(dtype).is_floating
    return _identity(builder, name, x) if floats else None


_ADD = _arithmetic("Add", lambda c, first: (1.0, c))
_MULTIPLY = _arithmetic("Multiply", lambda c, first: (c, 0.0))
_SUBTRACT = _arithmetic("Subtract", lambda c, first: (-1.0, c) if first else (1.0, -c))
_DIVIDE = _arithmetic("", lambda c, first: None if first else (1.0 / c, 0.0))

OPERATORS: dict[str, Rule] = {
    "add": _ADD,
    "add_n": _add_n,
    "add_v2": _ADD,
    "cast": _cast,
    "clip_by_value": _clip,
    "concat": _concat,
    "divide": _DIVIDE,
    "expand_dims": _expand_dims,
    "getitem": _getitem,
    "identity": _identity,
    "leaky_relu": _leaky_relu,
    "maximum": _arithmetic("Maximum", lambda c, first: None),
    "minimum": _arithmetic("Minimum", lambda c, first: None),
    "mul": _MULTIPLY,
    "multiply": _MULTIPLY,
    "negative": _negative,
    "pad": _pad,
    "reduce_max": _pool(layers.GlobalMaxPooling2D),
    "reduce_mean": _pool(layers.GlobalAveragePooling2D),
    "relu": _activation(tf_keras.activations.relu),
    "relu6": _activation(tf.nn.relu6),
    "reshape": _reshape,
    "resize": _resize,
    "sigmoid": _activation(tf_keras.activations.sigmoid),
    "silu": _activation(tf_keras.activations.swish),
    "softmax": _softmax,
    "split": _split,
    "square": _square,
    "squeeze": _squeeze,
    "stop_gradient": _stop_gradient,
    "sub": _SUBTRACT,
    "subtract": _SUBTRACT,
    "swish": _activation(tf_keras.activations.swish),
    "tanh": _activation(tf_keras.activations.tanh),
    "transpose": _transpose,
    "truediv": _DIVIDE,
}
"""Last part of the operator's name -> its rule; a rule returns None where it does not apply."""
