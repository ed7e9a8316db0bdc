"""Logits in place of probabilities: a final softmax or sigmoid that nothing else reads goes.

Probabilities that are only moved afterwards (reshaped, permuted, put beside those of other heads)
are followed back to it. Whether the loss's softmax over the last axis of the moved logits gives
the moved probabilities, is found out by trying it on random logits: that settles every axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from ehap_tf.graph import (
    MOVING,
    arguments,
    is_identity_at_inference,
    made_by,
    operator_kind,
    readers,
    traits_of,
)
from ehap_tf.models.kinds import function_kind
from ehap_tf.sensitivity.network.losses import SIGMOID, SOFTMAX, Loss

layers = tf_keras.layers

FINAL_ACTIVATIONS = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}
"""What turns the logits of a kind of loss into probabilities."""

_UNKNOWN_SIZE = 3


@dataclasses.dataclass(frozen=True)
class _Path:
    """How an output comes from the layers that made its numbers.

    Attributes:
        sources: the layers.
        move: makes the output of their outputs.
        moved: whether it does anything.
    """

    sources: tuple[Any, ...]
    move: Callable[[Sequence[Any]], Any]
    moved: bool = True


def take_logits(model: tf_keras.Model, loss: Loss, output: int = 0) -> tuple[Loss, frozenset[int]]:
    """Makes an output linear where its loss can be computed from logits.

    Args:
        model: a private copy, which is changed.
        loss: of the output.
        output: its number.

    Returns:
        The loss of what the output is now, and `id()` of layers that are to be left out.
    """
    if loss.kind not in FINAL_ACTIVATIONS:
        return loss, frozenset()
    path = _path(model, model.outputs[output])
    wanted = FINAL_ACTIVATIONS[loss.kind]
    finals = [_final(layer, wanted) for layer in path.sources] if path else [None]
    # Keras itself finds the logits of a softmax that is not moved, whatever `from_logits` says.
    unasked = loss.from_logits and path is not None and path.moved
    if path is None or None in finals or unasked or not _gives(path, finals, wanted):
        return loss.on_logits() if loss.from_logits else loss, frozenset()
    skipped = set()
    for layer, final in zip(path.sources, finals, strict=True):
        if final is layer:
            skipped.add(id(layer))
        else:
            layer.activation = tf_keras.activations.linear
    return loss.on_logits(), frozenset(skipped)


def _final(layer: Any, wanted: str) -> Any:
    """What makes probabilities in a layer: itself, its activation, or None."""
    if isinstance(layer, TFOpLambda):
        is_wanted = operator_kind(layer) == wanted and len(layer.inbound_nodes) == 1
        return layer if is_wanted else None
    if wanted == "softmax" and isinstance(layer, layers.Softmax):
        return layer
    activation = getattr(layer, "activation", None)
    is_softmax = wanted == "softmax" and isinstance(activation, layers.Softmax)
    return activation if is_softmax or function_kind(activation) == wanted else None


def _gives(path: _Path, finals: Sequence[Any], wanted: str) -> bool:
    """Whether the activation over the last axis of the output gives the moved probabilities."""
    random = np.random.default_rng(0)
    logits = []
    for layer in path.sources:
        shape = [_UNKNOWN_SIZE if size is None else size for size in layer.output_shape[1:]]
        logits.append(tf.constant(random.normal(0, 2, (2, *shape)), layer.compute_dtype))
    sources = zip(path.sources, finals, logits, strict=True)
    try:
        probabilities = path.move([_applied(final, layer, z) for layer, final, z in sources])
        moved = path.move(logits)
    except (ValueError, tf.errors.InvalidArgumentError):
        return False  # sizes that are not fixed do not fit what was put in their place
    again = tf.nn.softmax(moved) if wanted == "softmax" else tf.sigmoid(moved)
    return np.allclose(again, probabilities, atol=1e-2 if moved.dtype.size < 4 else 1e-5)


def _applied(final: Any, layer: Any, logits: tf.Tensor) -> tf.Tensor:
    if final is not layer or not isinstance(layer, TFOpLambda):
        return final(logits)
    (node,) = layer.inbound_nodes
    args, kwargs = arguments(node, [logits])
    return layer.function(*args, **kwargs)


def _path(model: tf_keras.Model, tensor: Any) -> _Path | None:
    """From an output back to what made its numbers; None where more than that reads it."""
    node, index = made_by(tensor)
    layer = node.layer
    if len(layer.inbound_nodes) != 1 or len(readers(model)[id(tensor)]) != 1:
        return None
    if isinstance(layer, tf_keras.Model):
        return _path(layer, layer.outputs[index])
    if not _moves(layer) or len(tf.nest.flatten(node.outputs)) != 1 or layer.weights:
        return _Path((layer,), lambda outputs: outputs[0], moved=False)
    parts = [_path(model, each) for each in node.keras_inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None

    def move(outputs: Sequence[Any]) -> Any:
        given, left = [], list(outputs)
        for part in known:
            mine, left = left[: len(part.sources)], left[len(part.sources) :]
            given.append(part.move(mine))
        if is_identity_at_inference(layer):
            return given[0]
        args, kwargs = arguments(node, given)
        return layer(*args, **kwargs)

    return _Path(tuple(source for part in known for source in part.sources), move)


def _moves(layer: Any) -> bool:
    """Whether a layer only moves numbers."""
    if isinstance(layer, TFOpLambda):
        return operator_kind(layer) in MOVING
    return traits_of(layer).moves or is_identity_at_inference(layer)
