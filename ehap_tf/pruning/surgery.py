"""The slim model: the layers of the original with the channels that a plan keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels import (
    ChannelGraph,
    Flags,
    Ids,
    ScatterChannels,
    TracedCall,
    trace_channels,
    weight_axes,
)
from ehap_tf.pruning.plan import PruningPlan
from ehap_tf.pruning.rebuild import Rebuilder


def prune(model: tf_keras.Model, plan: PruningPlan) -> tf_keras.Model:
    """A new, smaller model without the filters that the plan removes.

    Layer names, dtype policies, regularizers, constraints and trainable flags stay. For every
    input the output equals that of `mask(model, plan)` up to float rounding. The model given is
    left untouched; the new one is not compiled.

    Args:
        model: a Functional or Sequential model, the one that the plan was made for.
        plan: what to keep.

    Raises:
        TypeError: the model is subclassed.
        ValueError: the plan does not fit the model.
    """
    graph = trace_channels(model, plan.residual)
    return _Surgeon(graph, plan.alive(graph)).rebuild(model)


class _Surgeon(Rebuilder):
    def __init__(self, graph: ChannelGraph, alive: Flags) -> None:
        super().__init__(graph)
        self._alive = alive

    def width(self, ids: Ids) -> int:
        return int(self._alive[ids].sum())

    def connect(self, tensor: Any, arriving: Ids, wanted: Ids, consumer: str) -> Any:
        """Puts a branch that lacks channels which the consumer wants into their places."""
        have, want = self._alive[arriving], self._alive[wanted]
        if np.array_equal(have, want):
            return tensor
        place = np.cumsum(want) - 1
        name = self.fresh_name(f"{consumer}_scatter")
        policy = getattr(tensor, "dtype", None)
        layer = ScatterChannels(
            place[have].tolist(), int(want.sum()), name=name, dtype=policy.name if policy else None
        )
        return layer(tensor)

    def config(self, call: TracedCall) -> dict[str, Any]:
        config = super().config(call)
        for argument, value in call.effect.config.items():
            config[argument] = (
                value(self._alive) if callable(value) else int(self._alive[value].sum())
            )
        return config

    def weights(self, call: TracedCall) -> list[Any]:
        axes_of = weight_axes(call)
        sliced = []
        for weight, value in zip(call.layer.weights, call.layer.get_weights(), strict=True):
            for axis, ids in enumerate(axes_of.get(id(weight), ())):
                if ids is not None:
                    value = np.take(value, np.flatnonzero(self._alive[ids]), axis)
            sliced.append(value)
        return sliced

    def arguments(
        self, call: TracedCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if call.effect.arguments is None:
            return args, kwargs
        return call.effect.arguments(self._alive, args, kwargs)

    def skips(self, call: TracedCall) -> bool:
        return call.effect.pass_through
