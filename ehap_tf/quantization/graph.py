"""Walking a functional model call by call: the one place that knows tf_keras's nodes."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.registry import IDENTITIES
from ehap_tf.quantization.wrappers import unwrapped

Visit = Callable[[tf_keras.layers.Layer, tuple[Any, ...], dict[str, Any]], Any]
"""Called as `visit(layer, args, kwargs)` for every call of every layer; returns the new outputs."""


def walk(model: tf_keras.Model, inputs: Sequence[Any], visit: Visit) -> list[Any]:
    """Replays the calls that a functional model is made of, on other tensors.

    Nodes are *calls* of layers, so shared layers, repeated inputs and tensors among the keyword
    arguments need no special case. A tensor is dropped after its last reader.

    Args:
        model: a Functional or (built) Sequential model.
        inputs: one tensor for each input of the model; symbolic Keras tensors or plain ones.
        visit: what a call becomes. Input layers are not visited.

    Returns:
        The new outputs, one for each output of the model, in order.
    """
    values: dict[int, Any] = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}

    def replace(argument: Any) -> Any:
        return values.get(id(argument), argument)

    nodes_by_depth = model._nodes_by_depth
    nodes = [node for depth in nodes_by_depth.values() for node in depth]
    readers = collections.Counter(id(x) for node in nodes for x in node.keras_inputs)
    readers.update(id(output) for output in model.outputs)
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if node.is_input:
                continue
            args = tf.nest.map_structure(replace, node.call_args)
            kwargs = tf.nest.map_structure(replace, node.call_kwargs)
            outputs = visit(node.layer, tuple(args), dict(kwargs))
            for old, new in zip(
                tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True
            ):
                values[id(old)] = new
            for read in node.keras_inputs:
                readers[id(read)] -= 1
                if not readers[id(read)]:
                    values.pop(id(read), None)
    return [values[id(output)] for output in model.outputs]


def rebuild(
    model: tf_keras.Model,
    visit: Visit,
    on_input: Callable[[Any], Any] = lambda tensor: tensor,
    free_batch: bool = False,
) -> tf_keras.Model:
    """Builds the functional model that `visit` makes out of `model`, on fresh float32 inputs.

    The structure of the inputs and outputs (one tensor, a list, a dict) is that of `model`.

    Args:
        model: a Functional or (built) Sequential model.
        visit: what a call becomes.
        on_input: what the rest of the model reads instead of an input.
        free_batch: take batches of any size where `model` takes one of its own.
    """
    inputs = [
        tf_keras.Input(
            batch_shape=[None, *tensor.shape[1:]] if free_batch else tensor.shape,
            dtype="float32",
            name=tensor._keras_history.layer.name,
        )
        for tensor in model.inputs
    ]
    outputs = walk(model, [on_input(tensor) for tensor in inputs], visit)
    structure = getattr(model, "_nested_outputs", None)
    packed = outputs[0] if structure is None else tf.nest.pack_sequence_as(structure, outputs)
    nested_inputs = getattr(model, "_nested_inputs", None)
    packed_inputs = (
        inputs[0] if nested_inputs is None else tf.nest.pack_sequence_as(nested_inputs, inputs)
    )
    return tf_keras.Model(packed_inputs, packed, name=model.name)


def consumers(model: tf_keras.Model) -> dict[str, list[str]]:
    """Who reads each layer: layer name -> names of the layers that call on its outputs.

    A model output counts as a consumer of its own, named "" (it is visible outside).
    """
    found: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            for tensor in node.keras_inputs:
                found[tensor._keras_history.layer.name].append(node.layer.name)
    for tensor in model.outputs:
        found[tensor._keras_history.layer.name].append("")
    return found


def readers_in_file(model: tf_keras.Model) -> dict[str, list[str]]:
    """As `consumers`, what is identity at inference looked through: its consumers instead.

    Those are what a file's operator hands its numbers to.
    """
    direct = consumers(model)
    identities = {
        layer.name for layer in model.layers if layer_kind(unwrapped(layer)) in IDENTITIES
    }

    def beyond(name: str) -> list[str]:
        found = (beyond(n) if n in identities else [n] for n in direct[name])
        return list(itertools.chain.from_iterable(found))

    return {name: beyond(name) for name in direct}


def output_layers(model: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    """The layers that make the outputs, one for each; a `QuantizeLayer` behind is passed over."""
    found = []
    for tensor in model.outputs:
        layer, node, _ = tensor._keras_history
        while isinstance(layer, QuantizeLayer):
            layer, node, _ = layer._inbound_nodes[node].keras_inputs[0]._keras_history
        found.append(layer)
    return found


def producers(model: tf_keras.Model) -> dict[str, list[str]]:
    """Whom each layer reads: layer name -> names of the layers its inputs come from."""
    found: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            found[node.layer.name] += [t._keras_history.layer.name for t in node.keras_inputs]
    return found
