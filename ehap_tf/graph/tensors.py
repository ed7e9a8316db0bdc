"""The symbolic tensors of a functional model: which call made one, and which layers read it."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.graph.calls import nodes_in_order


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor of a Keras graph, of tf_keras or of Keras 3, not a constant."""
    return hasattr(value, "_keras_history")


def made_by(tensor: Any) -> tuple[Any, int]:
    """The node that made a symbolic tensor, and which of the node's outputs it is.

    Args:
        tensor: of tf_keras, or of Keras 3.
    """
    owner, node, index = tensor._keras_history
    return owner._inbound_nodes[node], index


def layer_of(tensor: Any) -> tf_keras.layers.Layer:
    """The layer whose call made a symbolic tensor of tf_keras."""
    return tensor._keras_history.layer


def input_layer_names(model: tf_keras.Model) -> list[str]:
    """The names of the input layers, in the order of the model's inputs."""
    return [layer_of(tensor).name for tensor in model.inputs]


def readers(model: tf_keras.Model) -> dict[int, list[Any]]:
    """`id()` of each tensor that is read -> the nodes that read it; None for a model output."""
    found: dict[int, list[Any]] = {}
    for node in nodes_in_order(model):
        for tensor in node.keras_inputs:
            found.setdefault(id(tensor), []).append(node)
    for tensor in model.outputs:
        found.setdefault(id(tensor), []).append(None)
    return found


def consumers(model: tf_keras.Model) -> dict[str, list[str]]:
    """Who reads each layer: layer name -> names of the layers that call on its outputs.

    A model output counts as a consumer of its own, named "" (it is visible outside).
    """
    found: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for node in nodes_in_order(model):
        for tensor in node.keras_inputs:
            found[layer_of(tensor).name].append(node.layer.name)
    for tensor in model.outputs:
        found[layer_of(tensor).name].append("")
    return found


def producers(model: tf_keras.Model) -> dict[str, list[str]]:
    """Whom each layer reads: layer name -> names of the layers its inputs come from."""
    found: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for node in nodes_in_order(model):
        found[node.layer.name] += [layer_of(tensor).name for tensor in node.keras_inputs]
    return found
