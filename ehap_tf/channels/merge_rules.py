"""Channel rules of the layers that line several tensors up."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import tf_keras
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from ehap_tf.channels.ids import Ids
from ehap_tf.channels.macs import Work, multiplies, numbers_in, shape_of, size_of
from ehap_tf.channels.rules import Call, Effect, frozen, positions, rule_for

layers = tf_keras.layers


@rule_for(layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum)
def elementwise_sum(call: Call) -> Effect:
    """Functions of several tensors that are zero where all of them are.

    In union mode a channel of the result is there when any branch has it; a branch without it is
    filled with zeros. In tied mode the branches keep the same channels.
    """
    wide, alone = _split_broadcast(call)
    if call.residual == "tied":
        out = functools.reduce(call.ids.tie, wide)
    else:
        out = functools.reduce(call.ids.either, wide)
    if alone:
        # A single channel is added to all of them: a missing one does not stay zero.
        out = call.ids.settle(out, f"{call.path!r} adds one channel to all")
    wanted = [out if len(ids) == len(out) else ids for ids in call.inputs]
    return Effect(wanted, [out], preserves_zero=not alone)


@rule_for(layers.Multiply)
def product(call: Call) -> Effect:
    """A gate and what it gates live and die together."""
    wide, _ = _split_broadcast(call)
    reason = f"{call.path!r} multiplies by a constant channel"
    settled = [call.ids.settle(ids, reason) for ids in wide]
    out = functools.reduce(call.ids.tie, settled)
    wanted = [out if len(ids) == len(out) else ids for ids in call.inputs]
    return Effect(wanted, [out], preserves_zero=True)


def _split_broadcast(call: Call) -> tuple[list[Ids], list[Ids]]:
    """The inputs with all channels, and those of one channel that are broadcast over them."""
    width = max(len(ids) for ids in call.inputs)
    wide = [ids for ids in call.inputs if len(ids) == width]
    alone = [ids for ids in call.inputs if len(ids) != width]
    for ids in alone:
        call.ids.freeze(ids, f"{call.path!r} spreads it over all channels")
    return wide, alone


@rule_for(layers.Concatenate)
def concatenate(call: Call) -> Effect:
    """Along the channels the ids follow one another; along another axis they line up."""
    return concatenate_along(call, call.layer.axis)


def concatenate_along(call: Call, axis: int) -> Effect:
    """The effect of a concatenation along `axis`."""
    rank = len(call.output_shapes[0])
    if axis in (-1, rank - 1):
        out = np.concatenate(call.inputs)
        return Effect(list(call.inputs), [out], preserves_zero=True)
    if call.residual == "tied":
        out = functools.reduce(call.ids.tie, call.inputs)
    else:
        out = functools.reduce(call.ids.either, call.inputs)
    return Effect([out] * len(call.inputs), [out], preserves_zero=True)


@rule_for(CustomScaleLayer)
def scaled_sum(call: Call) -> Effect:
    """Inception-ResNet's `shortcut + scale * branch`."""
    return elementwise_sum(call)


@rule_for(layers.Dot, layers.Attention, layers.AdditiveAttention, layers.MultiHeadAttention)
def contraction(call: Call) -> Effect:
    """Products over whole axes: left as they are, heads included."""
    return frozen(call, f"{type(call.layer).__name__} {call.path!r} is kept whole")


@multiplies(layers.MultiHeadAttention)
def _multi_head_attention(call: Call) -> Work:
    layer = call.layer
    query, value = (shape_of(_argument(call, *at)) for at in ((0, "query"), (1, "value")))
    given = _argument(call, 2, "key")
    key = value if given is None else shape_of(given)
    attended = math.prod(size_of(value[axis]) for axis in layer._attention_axes)
    pairs = positions(query) * attended
    return Work(
        {
            "_query_dense.kernel": positions(query),
            "_key_dense.kernel": positions(key),
            "_value_dense.kernel": positions(value),
            "_output_dense.kernel": positions(query),
        },
        pairs * layer._num_heads * (layer._key_dim + layer._value_dim),
    )


@multiplies(layers.Attention)
def _attention(call: Call) -> Work:
    query, value = call.input_shapes[:2]
    pairs = positions(query) * positions(value)
    return Work(products=pairs * (size_of(query[-1]) + size_of(value[-1])))


@multiplies(layers.AdditiveAttention)
def _additive_attention(call: Call) -> Work:
    """Each pair of positions is scored by a product with the scale, where there is one."""
    query, value = call.input_shapes[:2]
    pairs = positions(query) * positions(value)
    return Work({"scale": pairs} if call.layer.use_scale else {}, pairs * size_of(value[-1]))


@multiplies(layers.Dot)
def _dot(call: Call) -> Work:
    axes = call.layer.axes
    axis = axes if isinstance(axes, int) else axes[0]
    return Work(products=numbers_in(call.output_shapes[0]) * size_of(call.input_shapes[0][axis]))


def _argument(call: Call, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    args, kwargs = call.node.call_args, call.node.call_kwargs
    if name in kwargs:
        return kwargs[name]
    return args[place] if len(args) > place else default
