"""The calls of a functional model repeated on other values: the one engine that does.

Nodes are *calls* of layers, so shared layers, repeated inputs and tensors among the keyword
arguments need no special case. What is carried from call to call is the visitor's choice: symbolic
tensors (another model), numbers (its outputs), channel ids, sets of ancestors.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tensorflow as tf
import tf_keras

from ehap_tf.graph.calls import nodes_in_order

Value = TypeVar("Value")


def propagate(
    model: tf_keras.Model,
    values: Sequence[Value],
    visit: Callable[[Any, list[Value]], Sequence[Value]],
) -> list[Value]:
    """Carries values from a functional model's inputs to its outputs, call by call.

    Args:
        model: a Functional or (built) Sequential model.
        values: one for each input of the model.
        visit: called as `visit(node, given)` with the values of `node.keras_inputs`; returns one
            value for each of the node's outputs. Input layers are not visited.

    Returns:
        One value for each output of the model, in order.
    """
    return propagate_calls(nodes_in_order(model), model.inputs, values, model.outputs, visit)


def propagate_calls(
    nodes: Iterable[Any],
    inputs: Sequence[Any],
    values: Sequence[Value],
    outputs: Sequence[Any],
    visit: Callable[[Any, list[Value]], Sequence[Value]],
) -> list[Value]:
    """As `propagate`, through some calls; a value is dropped after its last reader.

    Args:
        nodes: the calls, in order; anything with `keras_inputs` and `outputs`.
        inputs: the symbolic tensors that are known at first.
        values: one for each of them.
        outputs: the symbolic tensors whose values are wanted.
        visit: as for `propagate`.
    """
    nodes = list(nodes)
    readers = collections.Counter(id(read) for node in nodes for read in node.keras_inputs)
    readers.update(map(id, outputs))
    known = {id(tensor): value for tensor, value in zip(inputs, values, strict=True)}
    for node in nodes:
        made = visit(node, [known[id(tensor)] for tensor in node.keras_inputs])
        for tensor in node.keras_inputs:
            readers[id(tensor)] -= 1
            if not readers[id(tensor)]:
                known.pop(id(tensor), None)
        known.update(zip(map(id, tf.nest.flatten(node.outputs)), made, strict=True))
    return [known[id(tensor)] for tensor in outputs]


def replay(
    model: tf_keras.Model,
    tensors: Sequence[Any],
    call: Callable[[tf_keras.layers.Layer, tuple[Any, ...], dict[str, Any]], Any],
) -> list[Any]:
    """As `propagate`, with a visitor that takes what the layer was called with.

    Args:
        model: a Functional or (built) Sequential model.
        tensors: one for each input of the model; symbolic ones or plain ones.
        call: called as `call(layer, args, kwargs)`; returns the new outputs, structured as those
            of the layer.
    """

    def visit(node: Any, given: list[Any]) -> list[Any]:
        return list(tf.nest.flatten(call(node.layer, *arguments(node, given))))

    return propagate(model, tensors, visit)


def arguments(node: Any, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node's call with its `keras_inputs`, in their order, replaced."""
    replacements = collections.defaultdict(list)
    # Keras pops from the end, so a tensor that occurs twice is stored last occurrence first.
    for old, new in reversed(list(zip(node.keras_inputs, tensors, strict=True))):
        replacements[str(id(old))].append(new)
    args, kwargs = node.map_arguments(replacements)
    return tuple(args), dict(kwargs)


def model_like(
    model: tf_keras.Model,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    model_class: type[tf_keras.Model] = tf_keras.Model,
) -> tf_keras.Model:
    """A functional model between tensors, which it takes and gives in the structures of another.

    Args:
        model: whose name and structures (one tensor, a list, a dict) the new one has.
        inputs: its inputs, in the order of `model.inputs`.
        outputs: its outputs, in the order of `model.outputs`.
        model_class: of the new model; its constructor takes what that of `tf_keras.Model` takes.
    """
    return model_class(
        tf.nest.pack_sequence_as(model._nested_inputs, inputs),
        tf.nest.pack_sequence_as(model._nested_outputs, outputs),
        name=model.name,
    )
