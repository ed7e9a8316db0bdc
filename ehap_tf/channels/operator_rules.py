"""Channel rules of operator layers: what tf_keras makes of `x * 2` or `x[..., :8]`.

An operator layer has no weights; its arguments stand in the node of its call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from ehap_tf.channels.ids import ZERO, Flags
from ehap_tf.channels.macs import Work, einsum, multiplies, numbers_in, shape_of, size_of
from ehap_tf.channels.merge_rules import concatenate_along, elementwise_sum, product
from ehap_tf.channels.rules import Call, Effect, frozen, one_input, pass_on, positions, rule_for
from ehap_tf.graph import PRODUCTS, SUMS, arguments, operator_kind, operator_symbol

_ELEMENTWISE = frozenset(
    """abs identity cast clip_by_value square sqrt rsqrt exp log negative sigmoid tanh softplus sign
    round pow erf reciprocal relu relu6 leaky_relu elu selu silu gelu softsign stop_gradient add
    subtract multiply divide maximum minimum""".split()
)
_REDUCTIONS = frozenset(["reduce_mean", "reduce_sum", "reduce_max"])


@rule_for(TFOpLambda)
def operator(call: Call) -> Effect:
    """Looks the function up by its TensorFlow name; one that is not listed freezes."""
    kind = operator_kind(call.layer)
    if kind in _REDUCTIONS:
        return _reduction(call)
    if kind in _SHAPED:
        return _SHAPED[kind](call)
    if len(call.inputs) > 1:
        if kind in SUMS:
            return elementwise_sum(call)
        if kind in PRODUCTS:
            return product(call)
    elif kind in _ELEMENTWISE and not _has_array(call):
        return pass_on(call, preserves_zero=_zero_at_zero(call))
    return frozen(
        call,
        f"no channel rule for the operator tf.{operator_symbol(call.layer)} (layer {call.path!r}); "
        "a Keras layer in its place, or one of your own with a rule, can be pruned",
    )


def _has_array(call: Call) -> bool:
    """Whether a constant with more than one number takes part, for instance one per channel."""
    constants = (*call.node.call_args, *call.node.call_kwargs.values())
    kinds = (np.ndarray, tf.Tensor, tf.Variable, list, tuple)
    return any(np.size(c) > 1 for c in constants if isinstance(c, kinds))


def _zero_at_zero(call: Call) -> bool:
    """Whether the operator makes zeros of zeros with the arguments of this call: `x * 2` does."""
    (tensor,) = call.node.keras_inputs
    with tf.init_scope():
        zeros = tf.zeros([1] * tensor.shape.rank, tensor.dtype)
        args, kwargs = arguments(call.node, [zeros])
        return not np.any(call.layer.function(*args, **kwargs))


@one_input
def _reduction(call: Call) -> Effect:
    axis = call.operator.arguments.get("axis")
    rank = len(call.input_shapes[0])
    axes = range(rank) if axis is None else np.atleast_1d(axis).tolist()
    if any(a % rank in (0, rank - 1) for a in axes):
        return frozen(call, f"{call.path!r} reduces the channel axis")
    return pass_on(call, preserves_zero=True)


def _concat(call: Call) -> Effect:
    return concatenate_along(call, call.operator.arguments["axis"])


@one_input
def _split(call: Call) -> Effect:
    """Along the channels every part carries its ids, and the sizes follow what is alive."""
    axis = call.operator.arguments.get("axis", 0)
    rank = len(call.input_shapes[0])
    (ids,) = call.inputs
    if axis % rank != rank - 1:
        return Effect([ids], [ids] * len(call.output_shapes), preserves_zero=True)
    ids = call.ids.settle(ids, f"{call.path!r} splits it")
    sizes = [shape[-1] for shape in call.output_shapes]
    parts = np.split(ids, np.cumsum(np.array(sizes, np.int64))[:-1])
    # A part must not become empty, which the kept filters alone do not ensure.
    for part in parts:
        call.ids.freeze(part[:1], f"{call.path!r} needs a channel in every part")

    def arguments(alive: Flags, args: Any, kwargs: Any) -> Any:
        now = [int(alive[part].sum()) for part in parts]
        return replaced(args, kwargs, 1, "num_or_size_splits", now)

    return Effect([ids], parts, arguments=arguments, preserves_zero=True)


@one_input
def _pad(call: Call) -> Effect:
    """Zero padding; along the channels it becomes the filling in of zeros where they are needed."""
    paddings = np.asarray(call.operator.arguments["paddings"])
    mode = str(call.operator.arguments.get("mode", "CONSTANT")).upper()
    value = call.operator.arguments.get("constant_values", 0) or 0
    before, after = (int(n) for n in paddings[-1])
    (ids,) = call.inputs
    if not before and not after:
        return pass_on(call, preserves_zero=mode != "CONSTANT" or value == 0)
    if mode != "CONSTANT" or value != 0 or paddings[:-1].any():
        return frozen(call, f"{call.path!r} pads channels with something else than zeros")
    out = np.concatenate([np.full(before, ZERO), ids, np.full(after, ZERO)]).astype(np.int64)
    return Effect([ids], [out], preserves_zero=True, pass_through=True)


def _reshape(call: Call) -> Effect:
    return frozen(
        call, f"tf.reshape in {call.path!r} states sizes; the Reshape layer can be pruned"
    )


_SHAPED: dict[str, Callable[[Call], Effect]] = {
    "concat": _concat,
    "split": _split,
    "pad": _pad,
    "reshape": _reshape,
}


def replaced(args: Any, kwargs: Any, place: int, name: str, value: Any) -> Any:
    """The arguments of a call with one of them replaced."""
    if name in kwargs:
        return args, {**kwargs, name: value}
    args = list(args)
    args[place] = value
    return tuple(args), kwargs


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "depthwise_conv2d")
_COUNTED = ("einsum", "matmul", "tensordot", *_CONVOLUTIONS)


@multiplies(TFOpLambda)
def _operator(call: Call) -> Work:
    kind = operator_kind(call.layer)
    given = call.operator.arguments if kind in _COUNTED else {}
    if kind == "matmul":
        left, turned = given["a"], given.get("transpose_a") or given.get("adjoint_a")
        inner = size_of(shape_of(left)[-2 if turned else -1])
        return Work(products=numbers_in(call.output_shapes[0]) * inner)
    if kind == "einsum":
        operands = given["inputs"]
        batch = next(n for n, each in enumerate(operands) if tf_keras.backend.is_keras_tensor(each))
        return Work(products=einsum(given["equation"], list(map(shape_of, operands)), batch))
    if kind == "tensordot":
        left, axes = given["a"], given["axes"]
        first = range(-axes, 0) if isinstance(axes, int) else np.atleast_1d(axes[0]).tolist()
        inner = math.prod(size_of(shape_of(left)[axis]) for axis in first)
        return Work(products=numbers_in(call.output_shapes[0]) * inner)
    if kind in _CONVOLUTIONS:
        filters = given.get("filters")
        filters = given["filter"] if filters is None else filters
        size = math.prod(map(size_of, shape_of(filters)))
        return Work(products=positions(call.output_shapes[0]) * size)
    symbol = operator_symbol(call.layer)
    if symbol.startswith(("linalg.", "signal.", "nn.conv", "nn.separable", "nn.atrous", "keras.")):
        return Work(uncounted=f"what the operator tf.{symbol} multiplies is not known")
    return Work()


@multiplies(SlicingOpLambda)
def _slicing(call: Call) -> Work:
    del call
    return Work()
