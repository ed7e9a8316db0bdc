"""Rules of the operators that compute over axes: reductions, norms, products of matrices, pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.graph import is_symbolic
from ehap_tf.quantization.integer_rules.builder import GraphBuilder

layers = tf_keras.layers

Rule = Callable[..., Any]


def _axes(axis: Any, rank: int) -> list[int]:
    """The axes that an argument stands for, the batch among them where there is none."""
    return list(range(rank)) if axis is None else sorted(int(a) % rank for a in np.ravel(axis))


def _reduction(operator: str, pool: Any = None) -> Rule:
    """A rule for a reduction over any axes but the batch.

    Args:
        operator: of `INTEGER_OPERATORS`.
        pool: the layer that it is over height and width, or over the length of sequences.
    """

    def rule(
        builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
    ) -> Any:
        rank, keepdims = x.shape.rank, bool(keepdims)
        axes = _axes(axis, rank)
        if 0 in axes:
            return None
        if pool is None or rank not in (3, 4) or axes != list(range(1, rank - 1)):
            return builder.operate(operator, name, x, axis=axes, keepdims=keepdims)

        def as_pool(image: Any) -> Any:
            return builder.call(pool, name, image, keepdims=keepdims)

        return builder.as_image(as_pool, x, name)

    return rule


def _variance(
    builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
) -> Any:
    """The mean square of the distance from the mean."""
    axes = _axes(axis, x.shape.rank)
    if 0 in axes:
        return None
    mean = builder.operate("reduce_mean", f"{name}_mean", x, axis=axes, keepdims=True)
    centred = builder.call(layers.Subtract, f"{name}_centre", [x, mean])
    square = builder.multiply(centred, centred, f"{name}_square")
    return builder.operate("reduce_mean", name, square, axis=axes, keepdims=bool(keepdims))


def _deviation(
    builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
) -> Any:
    variance = _variance(builder, f"{name}_variance", x, axis, keepdims)
    return None if variance is None else builder.operate("sqrt", name, variance)


def _log_sum_exp(
    builder: GraphBuilder, name: str, x: Any, axis: Any = None, keepdims: bool = False
) -> Any:
    """The largest value and the logarithm of a sum that is 1 at least."""
    axes = _axes(axis, x.shape.rank)
    if 0 in axes:
        return None
    largest = builder.operate("reduce_max", f"{name}_max", x, axis=axes, keepdims=True)
    distance = builder.call(layers.Subtract, f"{name}_distance", [x, largest])
    share = builder.operate("exp", f"{name}_exp", distance)
    total = builder.operate("reduce_sum", f"{name}_sum", share, axis=axes, keepdims=bool(keepdims))
    if not keepdims:
        largest = builder.operate("reduce_max", f"{name}_most", x, axis=axes, keepdims=False)
    log = builder.operate("log", f"{name}_log", total)
    return builder.call(layers.Add, name, [largest, log])


def _norm(
    builder: GraphBuilder,
    name: str,
    x: Any,
    ord: Any = "euclidean",
    axis: Any = None,
    keepdims: Any = None,
    keep_dims: Any = None,
) -> Any:
    """The Euclidean length along one axis."""
    axes = _axes(axis, x.shape.rank)
    if ord not in ("euclidean", 2) or 0 in axes or len(axes) != 1:
        return None
    square = builder.multiply(x, x, f"{name}_square")
    keep = bool(keepdims or keep_dims)
    total = builder.operate("reduce_sum", f"{name}_sum", square, axis=axes, keepdims=keep)
    return builder.operate("sqrt", name, total)


def _place(operator: str) -> Rule:
    """A rule for the place of the largest or smallest value."""

    def rule(
        builder: GraphBuilder, name: str, x: Any, axis: Any = None, output_type: Any = "int64"
    ) -> Any:
        axis = 0 if axis is None else int(axis) % x.shape.rank
        if axis == 0:
            return None
        output_type = getattr(output_type, "name", output_type)
        return builder.operate(operator, name, x, axis=axis, output_type=output_type)

    return rule


def over_last_axes(
    builder: GraphBuilder, name: str, x: Any, axis: Any, compute: Callable[[Any], Any]
) -> Any:
    """Applies what works on the last axis to others, of several as one vector; None for the batch.

    Args:
        builder: makes the layers.
        name: what their names begin with.
        x: the tensor.
        axis: one axis or several.
        compute: takes a tensor and gives one of the same shape.
    """
    rank = x.shape.rank
    axes = _axes(axis, rank)
    if 0 in axes:
        return None
    order = [a for a in range(1, rank) if a not in axes] + axes
    is_moved = order != list(range(1, rank))
    y = builder.call(layers.Permute, f"{name}_move", x, order) if is_moved else x
    moved = y.shape[1:]
    if len(axes) > 1:
        kept = moved[: rank - 1 - len(axes)]
        y = builder.call(layers.Reshape, f"{name}_join", y, (*kept, -1))
    y = compute(y)
    if len(axes) > 1:
        y = builder.call(layers.Reshape, f"{name}_part", y, moved)
    if is_moved:
        y = builder.call(layers.Permute, f"{name}_back", y, (np.argsort(order) + 1).tolist())
    return y


def l2_normalize(
    builder: GraphBuilder, name: str, x: Any, axis: Any = None, epsilon: float = 1e-12
) -> Any:
    """The kernel has an epsilon of its own, which matters for vectors of zeros only."""
    return over_last_axes(
        builder,
        name,
        x,
        axis,
        lambda y: builder.operate("l2_normalize", name, y, axis=-1, epsilon=float(epsilon)),
    )


def _softmax(builder: GraphBuilder, name: str, x: Any, axis: Any = -1) -> Any:
    return over_last_axes(
        builder,
        name,
        x,
        -1 if axis is None else axis,
        lambda y: builder.call(layers.Softmax, name, y),
    )


def _log_softmax(builder: GraphBuilder, name: str, x: Any, axis: Any = -1) -> Any:
    return over_last_axes(
        builder,
        name,
        x,
        -1 if axis is None else axis,
        lambda y: builder.operate("log_softmax", name, y),
    )


def _matmul(
    builder: GraphBuilder,
    name: str,
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    **options: Any,
) -> Any:
    """A product of two tensors; with a constant on the right a kernel that does not train."""
    if any(option not in (False, None) for option in options.values()) or not is_symbolic(a):
        return None
    if not is_symbolic(b):
        kernel = np.asarray(b, np.float32)
        if transpose_a or kernel.ndim != 2:
            return None
        kernel = kernel.T if transpose_b else kernel
        return builder.dense(a, kernel, None, name, trainable=False)
    if a.shape.rank != b.shape.rank or a.shape.rank < 3:
        return None
    return builder.operate(
        "matmul", name, a, b, transpose_a=bool(transpose_a), transpose_b=bool(transpose_b)
    )


def _einsum(builder: GraphBuilder, name: str, equation: Any, inputs: Any) -> Any:
    """A sum of products of two tensors that share the batch."""
    if len(inputs) != 2 or not all(map(is_symbolic, inputs)):
        return None
    spaceless = str(equation).replace(" ", "")
    operands, _, result = spaceless.partition("->")
    parts = [*operands.split(","), result]
    if "..." in spaceless or not result or len(parts) != 3 or len({p[:1] for p in parts}) != 1:
        return None
    return builder.operate("einsum", name, *inputs, equation=spaceless)


def _pooling(layer: Any, one_row: bool = False) -> Rule:
    """A rule for `tf.nn.max_pool2d` and its kin."""

    def rule(
        builder: GraphBuilder,
        name: str,
        x: Any,
        ksize: Any,
        strides: Any,
        padding: Any,
        data_format: Any = None,
    ) -> Any:
        rank = 3 if one_row else 4
        if x.shape.rank != rank or str(data_format or "N").startswith("NC"):
            return None
        if not isinstance(padding, str):
            return None
        sizes = [_window(value, rank) for value in (ksize, strides)]
        if None in sizes:
            return None
        size, step = [(1, *value) if one_row else value for value in sizes if value]

        def pool(image: Any) -> Any:
            return builder.call(layer, name, image, size, step, padding.lower())

        return builder.as_image(pool, x, name)

    return rule


def _window(value: Any, rank: int) -> tuple[int, ...] | None:
    """The sizes along height and width of what `tf.nn` takes for all axes, or for these."""
    numbers = [int(number) for number in np.ravel(value)]
    if len(numbers) == rank:
        if numbers[0] != 1 or numbers[-1] != 1:
            return None
        numbers = numbers[1:-1]
    return tuple(numbers * (rank - 2) if len(numbers) == 1 else numbers)


REDUCING_OPERATORS: dict[str, Rule] = {
    "argmax": _place("argmax"),
    "argmin": _place("argmin"),
    "avg_pool": _pooling(layers.AveragePooling2D),
    "avg_pool1d": _pooling(layers.AveragePooling2D, one_row=True),
    "avg_pool2d": _pooling(layers.AveragePooling2D),
    "einsum": _einsum,
    "l2_normalize": l2_normalize,
    "log_softmax": _log_softmax,
    "matmul": _matmul,
    "max_pool": _pooling(layers.MaxPooling2D),
    "max_pool1d": _pooling(layers.MaxPooling2D, one_row=True),
    "max_pool2d": _pooling(layers.MaxPooling2D),
    "norm": _norm,
    "reduce_logsumexp": _log_sum_exp,
    "reduce_max": _reduction("reduce_max", layers.GlobalMaxPooling2D),
    "reduce_mean": _reduction("reduce_mean", layers.GlobalAveragePooling2D),
    "reduce_min": _reduction("reduce_min"),
    "reduce_prod": _reduction("reduce_prod"),
    "reduce_std": _deviation,
    "reduce_sum": _reduction("reduce_sum"),
    "reduce_variance": _variance,
    "softmax": _softmax,
}
"""Last part of the operator's name -> its rule; a rule returns None where it does not apply."""
