"""Whether a network's Gauss-Newton trace is its Hessian trace.

It is when the outputs are piecewise linear in each single layer's weights: when every layer is
piecewise linear in its inputs, and no prunable layer is applied more than once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import tf_keras

from ehap_tf.graph import (
    PIECEWISE_LINEAR,
    PRODUCTS,
    QUOTIENTS,
    layer_calls,
    operator_kind,
    operator_of,
    traits_of,
)
from ehap_tf.sensitivity.network.filters import find_prunable, walk_layers

_LINEAR_ACTIVATIONS = {"linear", "relu", "relu6", "leaky_relu", "hard_sigmoid", "identity"}


def smooth_parts(model: tf_keras.Model, skipped: Collection[int] = ()) -> list[str]:
    """What keeps the Gauss-Newton trace from being the Hessian trace; empty when nothing does.

    Args:
        model: the network.
        skipped: `id()` of layers that are left out of the computation, such as a final softmax.

    Returns:
        One short text per layer, e.g. "dense_1 (Dense, gelu)".
    """
    calls = list(layer_calls(model))
    uses = Counter(id(layer) for layer, _ in calls)
    training = {id(layer) for layer, trains in calls if trains}
    found = []
    for name, layer in walk_layers(model):
        if id(layer) in skipped:
            continue
        activation = _activation_name(getattr(layer, "activation", None))
        if not traits_of(layer).piecewise_linear and not _is_linear_operator(layer):
            found.append(f"{name} ({type(layer).__name__})")
        elif activation is not None and activation not in _LINEAR_ACTIVATIONS:
            found.append(f"{name} ({type(layer).__name__}, {activation})")
        elif id(layer) in training:
            # BatchNorm then divides by the deviation of what it is given.
            found.append(f"{name} ({type(layer).__name__}, in training mode)")
    for prunable in find_prunable(model):
        if uses[id(prunable.layer)] > 1:
            found.append(f"{prunable.name} (used {uses[id(prunable.layer)]} times)")
    return found


def _is_linear_operator(layer: tf_keras.layers.Layer) -> bool:
    """Whether an operator is piecewise linear in its tensors, with the arguments of its calls."""
    kind, nodes = operator_kind(layer), layer.inbound_nodes
    if kind == "cast":
        return all(
            t.dtype.is_floating for node in nodes for t in (*node.keras_inputs, node.outputs)
        )
    if kind in PRODUCTS or kind in QUOTIENTS:
        # By constants; `2 / x` has its tensor below.
        return all(
            len(node.keras_inputs) == 1
            and (kind in PRODUCTS or node.keras_inputs[0] is _first_argument(node))
            for node in nodes
        )
    return kind in PIECEWISE_LINEAR


def _first_argument(node: Any) -> Any:
    operator = operator_of(node.layer, node.call_args, node.call_kwargs)
    return next(iter(operator.arguments.values()))


def _activation_name(activation: Any) -> str | None:
    if activation is None:
        return None
    if isinstance(activation, tf_keras.layers.Layer):
        is_linear = traits_of(activation).piecewise_linear
        return "linear" if is_linear else type(activation).__name__
    return getattr(activation, "__name__", type(activation).__name__)
