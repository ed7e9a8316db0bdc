"""Channel rules of the layers that treat every channel alone."""

from __future__ import annotations

import numpy as np
import tf_keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth

from ehap_tf.channels.ids import Flags, Ids
from ehap_tf.channels.macs import Work, multiplies
from ehap_tf.channels.rules import Call, Effect, frozen, one_input, pass_on, rule_for
from ehap_tf.channels.tried_activations import activation_name, mixes_channels, zero_at_zero
from ehap_tf.graph import BatchNorm

layers = tf_keras.layers


@rule_for(BatchNorm)
@one_input
def batch_normalization(call: Call) -> Effect:
    """One scale, shift, mean and variance per channel."""
    (ids,) = call.inputs
    axis = call.layer.axis
    rank = len(call.input_shapes[0])
    if list(np.atleast_1d(axis)) not in ([rank - 1], [-1]):
        return frozen(call, f"{call.path!r} normalises axis {axis}, not the last one")
    ids = call.ids.settle(ids, f"{call.path!r} maps a zero channel to non-zero")
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    if call.layer.renorm:
        names += ["moving_stddev", "renorm_mean", "renorm_stddev"]
    return Effect([ids], [ids], weights=dict.fromkeys(names, (ids,)))


@rule_for(layers.Activation)
def activation(call: Call) -> Effect:
    """An activation by name or function."""
    function = call.layer.activation
    rank = len(call.input_shapes[0])
    if mixes_channels(function, rank):
        name = activation_name(function)
        return frozen(call, f"the activation {name} of {call.path!r} mixes channels")
    return pass_on(call, preserves_zero=zero_at_zero(function, rank))


@rule_for(layers.Softmax)
def softmax(call: Call) -> Effect:
    """Mixes the channels of its axis."""
    return frozen(call, f"softmax in {call.path!r} mixes channels")


@rule_for(layers.ReLU)
def relu(call: Call) -> Effect:
    """Zero at zero, unless a slope starts below a threshold: then it is -slope * threshold."""
    layer = call.layer
    return pass_on(call, preserves_zero=not (layer.negative_slope and layer.threshold))


@rule_for(
    layers.Identity, layers.ThresholdedReLU, layers.LeakyReLU, layers.ELU,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.ActivityRegularization, StochasticDepth,
)  # fmt: skip
def zero_to_zero(call: Call) -> Effect:
    """Elementwise with f(0) = 0."""
    return pass_on(call, preserves_zero=True)


@rule_for(layers.Dropout)
@one_input
def dropout(call: Call) -> Effect:
    """The identity at inference; a mask that states the number of channels is stated anew."""
    (ids,) = call.inputs
    shape = call.layer.noise_shape
    if shape is None or shape[-1] in (None, 1):
        return pass_on(call, preserves_zero=True)

    def noise_shape(alive: Flags) -> tuple[int | None, ...]:
        return (*shape[:-1], int(alive[ids].sum()))

    return pass_on(call, config={"noise_shape": noise_shape}, preserves_zero=True)


@rule_for(layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout)
def noise(call: Call) -> Effect:
    """The identity at inference; while training a zero channel is noisy."""
    return pass_on(call)


@rule_for(layers.PReLU)
@one_input
def prelu(call: Call) -> Effect:
    """One slope per position and channel, or shared over positions."""
    (ids,) = call.inputs
    shared = call.layer.shared_axes or ()
    rank = len(call.input_shapes[0])
    axes: list[Ids | None] = [None] * (rank - 2)
    axes.append(None if rank - 1 in shared else ids)
    return Effect([ids], [ids], weights={"alpha": tuple(axes)}, preserves_zero=True)


@rule_for(layers.GroupNormalization)
@one_input
def group_normalization(call: Call) -> Effect:
    """With a group for each channel: one scale, shift, mean and variance per channel."""
    (ids,) = call.inputs
    layer, last = call.layer, len(call.input_shapes[0]) - 1
    if layer.axis not in (last, -1) or layer.groups not in (len(ids), -1):
        return statistics_over_channels(call)
    ids = call.ids.settle(ids, f"{call.path!r} maps a zero channel to non-zero")
    weights = dict.fromkeys(("gamma", "beta"), (ids,))
    return Effect([ids], [ids], config={"groups": ids}, weights=weights)


@rule_for(layers.LayerNormalization)
def layer_normalization(call: Call) -> Effect:
    """Over positions alone every channel has its mean, and all have the same scale and shift."""
    rank = len(call.input_shapes[0])
    if rank - 1 in [axis % rank for axis in np.atleast_1d(call.layer.axis)]:
        return statistics_over_channels(call)
    return pass_on(call)


@rule_for(layers.UnitNormalization)
def statistics_over_channels(call: Call) -> Effect:
    """Every output depends on the mean over channels, so no channel can go without a change."""
    return frozen(call, f"{type(call.layer).__name__} {call.path!r} takes means over channels")


@rule_for(LayerScale)
@one_input
def layer_scale(call: Call) -> Effect:
    """ConvNeXt's factor per channel."""
    (ids,) = call.inputs
    return Effect(
        [ids],
        [ids],
        config={"projection_dim": ids},
        weights={"gamma": (ids,)},
        preserves_zero=True,
    )


@rule_for(layers.Rescaling)
def rescaling(call: Call) -> Effect:
    """Scale and offset, with numbers that serve all channels."""
    layer = call.layer
    if np.size(layer.scale) != 1 or np.size(layer.offset) != 1:
        return frozen(call, f"{call.path!r} has one scale per channel")
    return pass_on(call, preserves_zero=bool(np.all(np.asarray(layer.offset) == 0)))


@rule_for(layers.Normalization)
def normalization(call: Call) -> Effect:
    """(x - mean) / sqrt(variance) with constants per channel; stands at inputs, so it is kept."""
    return frozen(call, f"{call.path!r} holds constants per channel")


@multiplies(
    layers.Embedding, layers.PReLU, layers.BatchNormalization, layers.LayerNormalization,
    layers.GroupNormalization, layers.Normalization,
)  # fmt: skip
def _by_element(call: Call) -> Work:
    """Weights of several axes that scale or look up single numbers."""
    del call
    return Work()
