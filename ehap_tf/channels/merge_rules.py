"""Channel rules of the layers that line several tensors up."""

from __future__ import annotations

import functools

import numpy as np
import tf_keras
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from ehap_tf.channels.ids import Ids
from ehap_tf.channels.rules import Call, Effect, frozen, rule_for

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
