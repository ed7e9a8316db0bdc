"""Channel rules of the layers that move positions: pooling, padding, reshaping, scattering."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels.ids import ZERO, Flags
from ehap_tf.channels.rules import Call, Effect, frozen, one_input, pass_on, rule_for
from ehap_tf.channels.scatter import ScatterChannels

layers = tf_keras.layers


@rule_for(
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D, layers.Cropping1D,
    layers.Cropping2D, layers.Cropping3D, layers.UpSampling1D, layers.UpSampling2D,
    layers.UpSampling3D,
)  # fmt: skip
def over_positions(call: Call) -> Effect:
    """Moves, picks or averages positions of each channel."""
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        return frozen(call, f"{call.path!r} is channels_first; only channels_last can be pruned")
    return pass_on(call, preserves_zero=True)


@rule_for(layers.Flatten)
@one_input
def flatten(call: Call) -> Effect:
    """Channels last: feature `c + C * position` is channel c."""
    (ids,) = call.inputs
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        return frozen(call, f"{call.path!r} is channels_first; only channels_last can be pruned")
    features = call.output_shapes[0][-1]
    if features is None:
        return frozen(call, f"{call.path!r} flattens an axis of unknown size")
    if not len(ids):
        return frozen(call, f"{call.path!r} makes channels of an input that has none")
    return Effect([ids], [np.tile(ids, features // len(ids))], preserves_zero=True)


@rule_for(layers.Reshape)
@one_input
def reshape(call: Call) -> Effect:
    """Keeps channels apart when the last axis stays, is flattened into, or is folded back out.

    Units of a Dense layer that are folded into a map live or die together with those of the same
    channel at the other positions.
    """
    (ids,) = call.inputs
    target = call.output_shapes[0]
    features = target[-1]
    if features is None:
        return frozen(call, f"{call.path!r} has a channel axis of unknown size")
    if not len(ids):
        return frozen(call, f"{call.path!r} makes channels of an input that has none")
    if features == len(ids):
        out = ids
    elif features % len(ids) == 0:
        out = np.tile(ids, features // len(ids))
    elif len(ids) % features == 0:
        rows = ids.reshape(-1, features)
        if not (rows == rows[0]).all():
            ids = call.ids.settle(ids, f"{call.path!r} makes a map of it")
            rows = ids.reshape(-1, features)
            for row in rows[1:]:
                call.ids.tie(rows[0], row)
        out = rows[0]
    else:
        return frozen(call, f"{call.path!r} mixes channels with positions")

    def target_shape(alive: Flags) -> tuple[int, ...]:
        return (*call.layer.target_shape[:-1], int(alive[out].sum()))

    return Effect([ids], [out], config={"target_shape": target_shape}, preserves_zero=True)


@rule_for(layers.InputLayer)
def input_layer(call: Call) -> Effect:
    """An input that is nested in another model passes on what it is given."""
    return pass_on(call, preserves_zero=True)


@rule_for(ScatterChannels)
@one_input
def scatter(call: Call) -> Effect:
    """Moves channels to their places. One that only fills in zeros is made anew where needed."""
    (ids,) = call.inputs
    places = np.array(call.layer.positions)
    out = np.full(call.layer.channels, ZERO, np.int64)
    out[places] = ids
    in_order = bool((np.diff(places) > 0).all())

    def new_positions(alive: Flags) -> list[Any]:
        rank = np.cumsum(alive[out]) - 1
        return rank[places[alive[ids]]].tolist()

    return Effect(
        [ids],
        [out],
        config={} if in_order else {"positions": new_positions, "channels": out},
        preserves_zero=True,
        pass_through=in_order,
    )
