"""A network whose filters can be switched off and on, built and compiled once.

Trying a hundred plans by surgery means building and tracing a hundred networks. Here every channel
has a gate that is a variable: a plan is a few assignments, and what the network computes is what
`prune(model, plan)` computes (the tests hold one against the other), BatchNorm's re-estimated
statistics included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import (
    ZERO,
    Ids,
    TracedCall,
    register_channel_rule,
    trace_channels,
)
from ehap_tf.channels.rules import Call, Effect
from ehap_tf.graph import AveragedStatistics, batch_norms
from ehap_tf.pruning.surgery.rebuild import Rebuilder


class ChannelGates(tf_keras.layers.Layer):
    """Multiplies every channel by a number that is not trained."""

    def build(self, input_shape: Any) -> None:
        """Makes one gate per channel, open."""
        self.gates = self.add_weight(
            "gates", shape=(input_shape[-1],), initializer="ones", trainable=False
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Scales the last axis."""
        return inputs * tf.cast(self.gates, inputs.dtype)


@register_channel_rule(ChannelGates)
def _gates_rule(call: Call) -> Effect:
    (ids,) = call.inputs
    return Effect([ids], [ids], weights={"gates": (ids,)}, preserves_zero=True)


class GatedModel:
    """A copy of a model with gates wherever something could be made of a zero.

    Args:
        model: a Functional or Sequential model; left as it is.
        residual: "union" or "tied", as in `plan_pruning`.
    """

    def __init__(self, model: tf_keras.Model, residual: str = "union") -> None:
        self._graph = trace_channels(model, residual)
        gater = _Gater(self._graph)
        self.model: tf_keras.Model = gater.rebuild(model)
        self._gates = gater.gates
        self._norms = batch_norms(self.model)
        self._averages = AveragedStatistics(self._norms)
        for layer in self.model._flatten_layers(include_self=False):
            for noise in ("rate", "stddev"):
                if isinstance(getattr(layer, noise, None), float):
                    setattr(layer, noise, 0.0)
        self._original = [[v.numpy() for v in _statistics(norm)] for norm in self._norms]
        self._infer = tf.function(self._guess, reduce_retracing=True)
        self._observe = tf.function(self._train, reduce_retracing=True)

    def keep(self, flags: Mapping[str, np.ndarray]) -> None:
        """Opens the gates of what stays and closes the others; statistics are the model's.

        Args:
            flags: layer -> for each filter whether it stays, as `PruningPlan.flags` gives.
        """
        alive = self._graph.ids.alive({name: np.asarray(f, bool) for name, f in flags.items()})
        for layer, ids in self._gates:
            layer.gates.assign((alive[ids] | (ids == ZERO)).astype(np.float32))
        for norm, values in zip(self._norms, self._original, strict=True):
            for variable, value in zip(_statistics(norm), values, strict=True):
                variable.assign(value)

    def recalibrate(self, batches: Sequence[Any]) -> None:
        """Re-estimates BatchNorm's statistics for what stays, as `ehap_tf.recalibrate` does.

        Without batches they stay as they are.
        """
        if not self._norms or not batches:
            return
        self._averages.reset()
        for inputs in batches:
            self._observe(inputs)
        self._averages.assign()

    def accuracy(self, inputs: np.ndarray, labels: np.ndarray, batch_size: int = 250) -> float:
        """The share of right answers."""
        right = 0
        for start in range(0, len(labels), batch_size):
            guesses = self._infer(tf.constant(inputs[start : start + batch_size])).numpy()
            right += int((guesses == labels[start : start + batch_size]).sum())
        return right / len(labels)

    def _guess(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.argmax(self.model(inputs, training=False), axis=-1)

    def _train(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.model(inputs, training=True)


class _Gater(Rebuilder):
    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.gates: list[tuple[ChannelGates, Ids]] = []

    def outputs(self, call: TracedCall, tensors: list[Any]) -> list[Any]:
        if call.effect.preserves_zero:
            return tensors
        gated = []
        for tensor, ids in zip(tensors, call.effect.outputs, strict=True):
            layer = ChannelGates(name=self.fresh_name(f"{call.layer.name}_gates"))
            gated.append(layer(tensor))
            self.gates.append((layer, ids))
        return gated


def _statistics(norm: tf_keras.layers.BatchNormalization) -> list[tf.Variable]:
    return [norm.moving_mean, norm.moving_variance]
