"""Channel rules of the layers that make new channels: convolutions and dense layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import tf_keras

from ehap_tf.channels.ids import Ids
from ehap_tf.channels.macs import Work, einsum, multiplies, places_of
from ehap_tf.channels.rules import Call, Effect, Rule, frozen, one_input, rule_for
from ehap_tf.channels.tried_activations import activation_name, mixes_channels, zero_at_zero

layers = tf_keras.layers


def _channels_last(filters: tuple[str, int] | None) -> Callable[[Rule], Rule]:
    """The rule of layers with one input whose filters stay where channels come first."""

    def decorate(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def checked(call: Call) -> Effect:
            if getattr(call.layer, "data_format", "channels_last") == "channels_last":
                return rule(call)
            reason = f"{call.path!r} is channels_first; only channels_last can be pruned"
            owned = None if is_depthwise(call.layer) else filters
            return dataclasses.replace(frozen(call, reason), filters=owned)

        return one_input(checked)

    return decorate


def _fused_activation_note(call: Call, out: Ids) -> str | None:
    """Freezes the filters when the layer's own activation looks across channels."""
    activation = call.layer.activation
    if not mixes_channels(activation, len(call.output_shapes[0])):
        return None
    reason = f"the activation {activation_name(activation)} of {call.path!r} mixes channels"
    call.ids.freeze(out, reason)
    return reason


@rule_for(layers.Conv1D, layers.Conv2D, layers.Conv3D)
@_channels_last(filters=("kernel", -1))
def convolution(call: Call) -> Effect:
    """A plain or grouped convolution; kernel (..., input channels / groups, filters).

    A grouped one keeps its number of groups, so channel i of every group lives or dies with
    channel i of the others, on both sides. With a group for each input channel it is a depthwise
    convolution, and loses groups.
    """
    layer = call.layer
    if is_depthwise(layer):
        return _channel_by_channel(call, "kernel", layer.filters // layer.groups)
    (arriving,) = call.inputs
    out = call.ids.filters(call.path, layer.filters)
    groups = layer.groups
    carried = arriving
    if groups > 1:
        arriving = call.ids.settle(arriving, f"{call.path!r} has groups of equal size")
        carried = _tie_groups(call, arriving, groups)
        _tie_groups(call, out, groups)
    spatial: tuple[Ids | None, ...] = (None,) * len(layer.kernel_size)
    return Effect(
        [arriving],
        [out],
        weights={"kernel": (*spatial, carried, out), "bias": (out,)},
        filters=("kernel", -1),
        config={"filters": out},
        implantable=_implantable(call),
        note=_fused_activation_note(call, out),
    )


def _implantable(call: Call) -> int | None:
    """Kernel positions, unless there is nothing to gain or the centre cannot be followed."""
    layer = call.layer
    kernel_positions = math.prod(layer.kernel_size)
    known_size = None not in call.input_shapes[0][1:]
    if (
        kernel_positions == 1
        or layer.groups > 1
        or call.shared
        or layer.padding not in ("same", "valid")
        or (layer.padding == "same" and max(layer.strides) > 1 and not known_size)
        or (layer.padding == "same" and _looks_beside(layer))
    ):
        return None
    return kernel_positions


def _looks_beside(layer: tf_keras.layers.Layer) -> bool:
    """Whether the centre of a kernel of even size is apart from the pixel that it computes."""
    axes = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    return any(size % 2 == 0 and rate > 1 for size, rate in axes)


def _tie_groups(call: Call, ids: Ids, groups: int) -> Ids:
    """Ties the channels at the same place of every group; returns those of the first group."""
    by_group = ids.reshape(groups, -1)
    for other in by_group[1:]:
        call.ids.tie(by_group[0], other)
    return by_group[0]


@rule_for(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
@_channels_last(filters=("kernel", -2))
def transposed_convolution(call: Call) -> Effect:
    """A transposed convolution; kernel (..., filters, input channels)."""
    layer = call.layer
    (arriving,) = call.inputs
    out = call.ids.filters(call.path, layer.filters)
    spatial: tuple[Ids | None, ...] = (None,) * len(layer.kernel_size)
    return Effect(
        [arriving],
        [out],
        weights={"kernel": (*spatial, out, arriving), "bias": (out,)},
        filters=("kernel", -2),
        config={"filters": out},
        note=_fused_activation_note(call, out),
    )


@rule_for(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
@_channels_last(filters=None)
def depthwise_convolution(call: Call) -> Effect:
    """A convolution of every channel alone; its outputs live with its inputs."""
    return _channel_by_channel(call, "depthwise_kernel", call.layer.depth_multiplier)


def is_depthwise(layer: tf_keras.layers.Layer) -> bool:
    """Whether a convolution of another class has a group for each of its input channels."""
    grouped = isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D))
    return grouped and layer.groups > 1 and layer.kernel.shape[-2] == 1


def _channel_by_channel(call: Call, kernel: str, multiplier: int) -> Effect:
    """The effect of a depthwise convolution, with its kernel's name and its outputs per channel."""
    layer = call.layer
    (arriving,) = call.inputs
    preserves_zero = not layer.use_bias and zero_at_zero(layer.activation)
    if not preserves_zero:
        arriving = call.ids.settle(arriving, f"{call.path!r} maps a zero channel to non-zero")
    out = np.repeat(arriving, multiplier)
    spatial: tuple[Ids | None, ...] = (None,) * len(layer.kernel_size)
    own = kernel == "depthwise_kernel"
    return Effect(
        [arriving],
        [out],
        weights={kernel: (*spatial, *((arriving, None) if own else (None, out))), "bias": (out,)},
        config={} if own else {"filters": out, "groups": arriving},
        preserves_zero=preserves_zero,
        note=_fused_activation_note(call, out),
    )


@rule_for(layers.SeparableConv1D, layers.SeparableConv2D)
@_channels_last(filters=("pointwise_kernel", -1))
def separable_convolution(call: Call) -> Effect:
    """A depthwise convolution and a 1x1 convolution in one layer."""
    layer = call.layer
    (arriving,) = call.inputs
    out = call.ids.filters(call.path, layer.filters)
    between = np.repeat(arriving, layer.depth_multiplier)
    spatial: tuple[Ids | None, ...] = (None,) * len(layer.kernel_size)
    return Effect(
        [arriving],
        [out],
        weights={
            "depthwise_kernel": (*spatial, arriving, None),
            "pointwise_kernel": (*spatial, between, out),
            "bias": (out,),
        },
        filters=("pointwise_kernel", -1),
        config={"filters": out},
        note=_fused_activation_note(call, out),
    )


@rule_for(layers.Dense)
@one_input
def dense(call: Call) -> Effect:
    """A dense layer on vectors or on the last axis of a feature map; kernel (inputs, units)."""
    layer = call.layer
    (arriving,) = call.inputs
    out = call.ids.filters(call.path, layer.units)
    return Effect(
        [arriving],
        [out],
        weights={"kernel": (arriving, out), "bias": (out,)},
        filters=("kernel", -1),
        config={"units": out},
        note=_fused_activation_note(call, out),
    )


def _at_outputs(*kernels: str) -> Callable[[Call], Work]:
    """Counts kernels that are used once at each position of the output."""
    return lambda call: Work(dict.fromkeys(kernels, places_of(call, call.output_shapes[0])))


multiplies(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)(_at_outputs("kernel"))
multiplies(layers.DepthwiseConv1D, layers.DepthwiseConv2D)(_at_outputs("depthwise_kernel"))
multiplies(layers.SeparableConv1D, layers.SeparableConv2D)(
    _at_outputs("depthwise_kernel", "pointwise_kernel")
)


@multiplies(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(call: Call) -> Work:
    return Work({"kernel": places_of(call, call.input_shapes[0])})


@multiplies(layers.LocallyConnected1D, layers.LocallyConnected2D)
def _locally_connected(call: Call) -> Work:
    """Each position has weights of its own."""
    del call
    return Work({"kernel": 1.0})


@multiplies(layers.EinsumDense)
def _einsum_dense(call: Call) -> Work:
    layer = call.layer
    whole = einsum(layer.equation, [call.input_shapes[0], tuple(layer.kernel.shape)])
    return Work({"kernel": whole / math.prod(layer.kernel.shape)})
