"""Rebuilds a functional model call by call, so that what changes is said in three small methods.

The walk follows `ehap_tf.channels.trace_channels`, with nested models rebuilt as nested models,
TimeDistributed layers around what they hold, and shared layers as shared layers. Nothing of the
original is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.channels import ChannelGraph, Ids, TracedCall, saved_arguments, trace_channels
from ehap_tf.graph import (
    ZeroInitializers,
    arguments,
    copy_trainable,
    kept_random_state,
    layer_from,
    layer_of,
    model_inside,
    model_like,
    propagate,
)
from ehap_tf.pruning.plan.pruning_plan import PruningPlan, require_plan


class Rebuilder:
    """Makes a copy of a traced model; a subclass says how the copy differs.

    Args:
        graph: the trace of the model.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._new_layers: dict[int, tf_keras.layers.Layer] = {}
        self._made: list[tuple[tf_keras.layers.Layer, tf_keras.layers.Layer, list[Any]]] = []
        self._taken_names: list[set[str]] = []

    # What a subclass decides -------------------------------------------------------------------

    def width(self, ids: Ids) -> int:
        """The number of channels in the copy of a tensor that carries `ids`."""
        return len(ids)

    def connect(self, tensor: Any, arriving: Ids, wanted: Ids, name: str) -> Any:
        """The tensor that a consumer sees, given the one that its producer made.

        A layer put in between should be called `name`.
        """
        del arriving, wanted, name
        return tensor

    def config(self, call: TracedCall) -> dict[str, Any]:
        """The configuration of the copy of a layer."""
        return dict(call.layer.get_config())

    def weights(self, call: TracedCall) -> list[Any]:
        """The weights of the copy of a layer."""
        return list(call.layer.get_weights())

    def outputs(self, call: TracedCall, tensors: list[Any]) -> list[Any]:
        """What stands for the outputs of the copy of a call."""
        del call
        return tensors

    def skips(self, call: TracedCall) -> bool:
        """Whether a call vanishes from the copy."""
        del call
        return False

    # The walk ----------------------------------------------------------------------------------

    def rebuild(self, model: tf_keras.Model) -> tf_keras.Model:
        """The copy of the traced model, with its weights."""
        with kept_random_state():
            with ZeroInitializers() as self._zeros:
                copy = self._rebuild_model(model, None)
            for old, new, values in self._made:
                copy_trainable(old, new)
                if values:
                    new.set_weights(values)
        return copy

    def make_layer(
        self, call: TracedCall, config: dict[str, Any], values: list[Any]
    ) -> tf_keras.layers.Layer:
        """A layer of the same class that gets its weights once the copy is built."""
        new = layer_from(call.layer, config)
        self._zeros.apply(new)
        self._made.append((call.layer, new, values))
        return new

    def apply(self, call: TracedCall, node: Any, tensors: list[Any]) -> list[Any]:
        """Calls the copy of a layer, made at the first call, and returns its outputs."""
        key = id(call.layer)
        if key not in self._new_layers:
            self._new_layers[key] = self.make_layer(call, self.config(call), self.weights(call))
        args, kwargs = self.arguments(call, *arguments(node, tensors))
        args, kwargs = saved_arguments(call.layer, args, kwargs)
        return list(tf.nest.flatten(self._new_layers[key](*args, **kwargs)))

    def fresh_name(self, wish: str) -> str:
        """A layer name that no layer around it has."""
        taken = self._taken_names[-1]
        name, number = wish, 1
        while name in taken:
            name, number = f"{wish}_{number}", number + 1
        taken.add(name)
        return name

    def _rebuild_model(
        self, model: tf_keras.Model, arriving: Sequence[Ids] | None
    ) -> tf_keras.Model:
        self._taken_names.append({layer.name for layer in model.layers})
        inputs = []
        for number, tensor in enumerate(model.inputs):
            shape = list(tensor.shape)
            if arriving is not None and len(shape) > 1 and shape[-1] is not None:
                shape[-1] = self.width(arriving[number])
            name = layer_of(tensor).name
            inputs.append(tf_keras.Input(batch_shape=shape, dtype=tensor.dtype, name=name))
        outputs = propagate(model, inputs, self._rebuild_call)
        if arriving is None:
            for place, (have, wanted) in enumerate(self.graph.outputs):
                name = layer_of(model.outputs[place]).name
                if name in self._taken_names[-1]:
                    name = f"{name}_scatter"
                outputs[place] = self.connect(outputs[place], have, wanted, name)
        self._taken_names.pop()
        copy = self._assemble(model, inputs, outputs)
        # The setter would push the flag down onto layers that have flags of their own.
        copy._trainable = model._trainable
        return copy

    def _assemble(
        self, model: tf_keras.Model, inputs: list[Any], outputs: list[Any]
    ) -> tf_keras.Model:
        copy = model_like(model, inputs, outputs)
        if not isinstance(model, tf_keras.Sequential):
            return copy
        chain = [
            layer for layer in copy.layers if not isinstance(layer, tf_keras.layers.InputLayer)
        ]
        if not _is_chain(copy.inputs, chain):
            return copy
        # Layers of a chain in order; a Sequential calls them again on an input of its own.
        return tf_keras.Sequential([copy.layers[0], *chain], name=model.name)

    def _rebuild_call(self, node: Any, tensors: list[Any]) -> list[Any]:
        layer = node.layer
        inside = model_inside(layer)
        if inside is not None:
            return self._call_nested(node, inside, tensors)
        call = self.graph.calls[id(node)]
        if self.skips(call):
            self._taken_names[-1].discard(layer.name)
            return tensors
        tensors = [
            self.connect(tensor, have, wanted, f"{layer.name}_scatter")
            for tensor, have, wanted in zip(tensors, call.arriving, call.effect.inputs, strict=True)
        ]
        return self.outputs(call, self.apply(call, node, tensors))

    def arguments(
        self, call: TracedCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the copy of a call."""
        del call
        return args, kwargs

    def _call_nested(self, node: Any, model: tf_keras.Model, tensors: list[Any]) -> list[Any]:
        layer, wanted = node.layer, self.graph.nested_inputs[id(model)]
        tensors = [
            self.connect(tensor, have, want, layer.name)
            for tensor, have, want in zip(
                tensors, self.graph.nested_arriving[id(node)], wanted, strict=True
            )
        ]
        if id(model) not in self._new_layers:
            self._new_layers[id(model)] = self._rebuild_model(model, wanted)
        if id(layer) not in self._new_layers:
            inside = self._new_layers[id(model)]
            if model is not layer.layer:  # it stands for a single layer
                inside = _only_layer(inside)
            new = type(layer)(inside, name=layer.name, dtype=layer.dtype_policy)
            new._trainable = layer._trainable
            self._new_layers[id(layer)] = new
        args, kwargs = arguments(node, tensors)
        return list(tf.nest.flatten(self._new_layers[id(layer)](*args, **kwargs)))


class ByPlan(Rebuilder):
    """Makes a copy of a model as a plan says.

    Args:
        model: that the plan was made for.
        plan: which filters stay.

    Raises:
        TypeError: `plan` is no plan.
        ValueError: it does not fit the model.
    """

    def __init__(self, model: tf_keras.Model, plan: PruningPlan) -> None:
        require_plan(plan)
        super().__init__(trace_channels(model, plan.residual))
        self._plan = plan
        self._alive = plan.alive(self.graph)


def _only_layer(model: tf_keras.Model) -> tf_keras.layers.Layer:
    """The layer of a model that has one layer; the model itself where it has several."""
    found = [layer for layer in model.layers if not isinstance(layer, tf_keras.layers.InputLayer)]
    return found[0] if len(found) == 1 else model


def _is_chain(inputs: list[Any], chain: Sequence[tf_keras.layers.Layer]) -> bool:
    """Whether each layer is called once, on nothing but what the layer before it returned."""
    tensors = inputs
    for layer in chain:
        nodes = layer.inbound_nodes
        if len(nodes) != 1 or list(map(id, nodes[0].keras_inputs)) != list(map(id, tensors)):
            return False
        tensors = tf.nest.flatten(nodes[0].outputs)
    return True
