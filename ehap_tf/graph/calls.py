"""The layers and calls of a functional model, those of the models nested in it included.

A layer knows all its calls, also those that belong to other models. Here only those count that the
model computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

# Keyed by the layer itself, which is hashable by identity; forgotten with it.
_OF_ONE_STEP: weakref.WeakKeyDictionary[Any, tf_keras.Model] = weakref.WeakKeyDictionary()


def is_nested_model(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer is itself a functional graph that can be looked into."""
    return isinstance(layer, tf_keras.Model) and bool(getattr(layer, "_nodes_by_depth", None))


def is_time_distributed(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer does the same in every step, as Keras' TimeDistributed does.

    Not a stateful one, which knows what it saw before.
    """
    return type(layer) is tf_keras.layers.TimeDistributed and not getattr(
        layer.layer, "stateful", False
    )


def model_inside(layer: tf_keras.layers.Layer) -> tf_keras.Model | None:
    """The functional graph that a layer computes, or None where it has none.

    That of a nested model is itself; that of `TimeDistributed` is what it does in one step, with
    examples and steps on one axis: the model that it holds, or a model of the one layer.
    """
    if is_nested_model(layer):
        return layer
    if not is_time_distributed(layer):
        return None
    return layer.layer if is_nested_model(layer.layer) else _of_one_step(layer)


def _of_one_step(layer: tf_keras.layers.TimeDistributed) -> tf_keras.Model:
    """A model that calls nothing but the layer that a TimeDistributed holds.

    The layer is the caller's own, and keeps no trace of the call.
    """
    if layer not in _OF_ONE_STEP:
        inner, arrives = layer.layer, layer.inbound_nodes[0].call_args[0]
        inputs = [
            tf_keras.Input(tensor.shape[2:], dtype=tensor.dtype, name=f"{inner.name}_input{place}")
            for place, tensor in enumerate(tf.nest.flatten(arrives))
        ]
        packed = tf.nest.pack_sequence_as(arrives, inputs)
        _OF_ONE_STEP[layer] = tf_keras.Model(packed, inner(packed), name=inner.name)
        inner._inbound_nodes.pop()
    return _OF_ONE_STEP[layer]


def steps_of(node: Any) -> float:
    """How often a call computes the model inside its layer for one example; NaN if not fixed."""
    if not is_time_distributed(node.layer):
        return 1.0
    steps = node.keras_inputs[0].shape[1]
    return float("nan") if steps is None else float(steps)


def nodes_in_order(model: Any) -> Iterator[Any]:
    """The nodes of a functional model, inputs before what uses them; nested models stay shut.

    Args:
        model: of tf_keras, or of Keras 3.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def nodes_once(model: tf_keras.Model) -> list[Any]:
    """All nodes, those of nested models too, each once."""
    return list({id(node): node for node, _ in nodes_as_computed(model)}.values())


def nodes_as_computed(model: tf_keras.Model, times: float = 1.0) -> Iterator[tuple[Any, float]]:
    """All nodes, those of a nested model again at each of its calls, and how often: once per step.

    Args:
        model: the model.
        times: how often it is computed itself.
    """
    for node in nodes_in_order(model):
        yield node, times
        inside = model_inside(node.layer)
        if inside is not None:
            yield from nodes_as_computed(inside, times * steps_of(node))


def training_argument(
    layer: tf_keras.layers.Layer, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool | None:
    """What a call says about training mode, by position or by name; None where it says nothing."""
    asked = ("training", args, kwargs, True)
    spec = layer._call_spec
    training = spec.get_arg_value(*asked) if spec.arg_was_passed(*asked) else None
    return None if training is None else bool(training)


def in_training(node: Any, around: bool) -> bool:
    """Whether a call is in training mode: as it says itself, else as the model around it is."""
    own = training_argument(node.layer, node.call_args, node.call_kwargs)
    return around if own is None else own


def layer_calls(
    model: tf_keras.Model, training: bool = False
) -> Iterator[tuple[tf_keras.layers.Layer, bool]]:
    """Every call of every layer, and whether the layer trains in it.

    Those of a nested model come as often as the model is called.
    """
    for node in nodes_in_order(model):
        trains = in_training(node, training)
        inside = model_inside(node.layer)
        if inside is not None:
            yield from layer_calls(inside, trains)
        else:
            yield node.layer, trains and node.layer._expects_training_arg


def layer_paths(model: tf_keras.Model) -> dict[int, str]:
    """`id()` of each layer and nested model -> its name, models around it first: "backbone/conv1".

    A layer inside a TimeDistributed has the name of that before its own: "steps/conv1". What is
    used in several places is named by the first.

    Raises:
        ValueError: two layers have the same path.
    """
    paths: dict[int, str] = {}
    _collect_paths(model, "", paths, {})
    return paths


def _collect_paths(
    model: tf_keras.Model, prefix: str, paths: dict[int, str], places: dict[str, str]
) -> None:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for layer in (node.layer for node in model._nodes_by_depth[depth]):
            if id(layer) in paths:
                continue
            path, place = prefix + layer.name, f"layer {layer.name!r} of model {model.name!r}"
            if path in places:
                raise ValueError(
                    "layers must have different names, those of the models around them before "
                    f"theirs. Received: {path!r} for {places[path]} and for {place}; rename one"
                )
            paths[id(layer)], places[path] = path, place
            inside = model_inside(layer)
            if inside is not None:
                paths.setdefault(id(inside), path)
                _collect_paths(inside, f"{path}/", paths, places)
