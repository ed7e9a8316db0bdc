"""Logits in place of probabilities: a final softmax or sigmoid that nothing else reads goes."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.models.kinds import function_kind
from ehap_tf.sensitivity.losses import SIGMOID, SOFTMAX, Loss

FINAL_ACTIVATIONS = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}
"""What turns the logits of a kind of loss into probabilities."""


def take_logits(model: tf_keras.Model, loss: Loss, output: int = 0) -> tuple[Loss, frozenset[int]]:
    """Makes an output linear where its loss can be computed from logits.

    Args:
        model: a private copy, which is changed.
        loss: of the output.
        output: its number.

    Returns:
        The loss of what the output is now, and `id()` of a softmax layer that is to be left out.
    """
    if loss.kind not in FINAL_ACTIVATIONS:
        return loss, frozenset()
    layer = _last_layer(model, output)
    if loss.kind == SOFTMAX and _is_softmax_layer(layer):
        return loss.on_logits(), frozenset([id(layer)])
    activation = getattr(layer, "activation", None)
    is_final = function_kind(activation) == FINAL_ACTIVATIONS[loss.kind]
    if is_final or (loss.kind == SOFTMAX and _is_softmax_layer(activation)):
        layer.activation = tf_keras.activations.linear
        return loss.on_logits(), frozenset()
    return loss.on_logits() if loss.from_logits else loss, frozenset()


def _is_softmax_layer(thing: Any) -> bool:
    return isinstance(thing, tf_keras.layers.Softmax) and bool(thing.axis == -1)


def _last_layer(model: tf_keras.Model, output: int) -> Any:
    """The layer that gives an output, nested models opened; None where more than that reads it."""
    tensor = model.outputs[output]
    layer, _, index = tensor._keras_history
    if len(layer.inbound_nodes) != 1 or _readers(model, tensor) != 1:
        return None
    return _last_layer(layer, index) if isinstance(layer, tf_keras.Model) else layer


def _readers(model: tf_keras.Model, tensor: Any) -> int:
    """How many calls take a tensor, and outputs are it."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    read = [*model.outputs, *(each for node in nodes for each in node.keras_inputs)]
    return sum(each is tensor for each in read)
