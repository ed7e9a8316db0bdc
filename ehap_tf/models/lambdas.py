"""Lambda layers taken apart: the same model with operator layers in their place.

What a Lambda layer does to channels, or in integers, is not known; what the TensorFlow functions
that it calls do is. Keras records those when the layer's function is called on symbolic tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import Copier, is_time_distributed, nodes_in_order, replay
from ehap_tf.models.checks import require_functional
from ehap_tf.models.recorded_functions import StaysClosedError, recorded


def has_lambdas(model: tf_keras.Model) -> bool:
    """Whether a Lambda layer is called in the graph of the model, or of one nested in it.

    Alone in a TimeDistributed it counts; in a model there it does not, and none of a subclassed
    model or one that was not built does.
    """
    return bool(model._is_graph_network) and any(
        has_lambdas(layer)
        if isinstance(layer, tf_keras.Model)
        else type(layer) is tf_keras.layers.Lambda or _is_of_each_step(layer)
        for layer in model.layers
    )


def _is_of_each_step(layer: Any) -> bool:
    """Whether a layer is a TimeDistributed that holds a Lambda layer."""
    return is_time_distributed(layer) and type(layer.layer) is tf_keras.layers.Lambda


def open_lambdas(model: tf_keras.Model) -> tf_keras.Model:
    """A copy of a model in which operator layers stand where its Lambda layers can be taken apart.

    A Lambda layer is replaced where its function can be called on symbolic tensors, and what was
    recorded then gives the function's outputs on random inputs, also after it was saved and loaded.
    The last operator has the name of the Lambda layer. Other Lambda layers stay, and have the
    reason in their attribute `stays_closed`. A Sequential model with a Lambda layer becomes a
    Functional one. Weights, names, nested models, shared layers and the compiled loss are kept.

    Args:
        model: Functional or Sequential; it stays as it is, and is returned where it has no Lambda.

    Raises:
        TypeError: a model nested in it is subclassed.
    """
    if not has_lambdas(model):
        return model
    require_functional(model)
    copy = _Opening().copy(model)
    if getattr(model, "loss", None) is not None:
        optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        weights = model.compiled_loss._user_loss_weights
        copy.compile(optimizer, model.loss, loss_weights=weights)
    return copy


class _Opening(Copier):
    """Copies with operator layers in the place of Lambda layers."""

    def __init__(self) -> None:
        super().__init__()
        self._names: set[str] = set()

    def is_chain(self, model: tf_keras.Model) -> bool:
        return super().is_chain(model) and not has_lambdas(model)

    def functional(self, model: tf_keras.Model) -> tf_keras.Model:
        outer, self._names = self._names, {layer.name for layer in model.layers}
        copy = super().functional(model)
        self._names = outer
        return copy

    def call(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_of_each_step(layer):
            return self._of_each_step(layer)(*args, **kwargs)
        if type(layer) is not tf_keras.layers.Lambda:
            return super().call(layer, args, kwargs)
        try:
            operators = _operators(layer, args, kwargs)
        except StaysClosedError as reason:
            closed = self.layer(layer)
            closed.stays_closed = str(reason)
            return closed(*args, **kwargs)
        names = self._operator_names(layer, operators)

        def call(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            config = {**operator.get_config(), "name": next(names)}
            return type(operator).from_config(config)(*args, **kwargs)

        outputs = replay(operators, tf.nest.flatten(args), call)
        return tf.nest.pack_sequence_as(operators._nested_outputs, outputs)

    def _of_each_step(self, layer: Any) -> Any:
        """A TimeDistributed with a model of operators, or a copy of the layer."""
        if id(layer) not in self._made:
            batch, _, *step = layer.get_input_shape_at(0)
            x = tf_keras.Input(batch_shape=(batch, *step), dtype=layer.layer.dtype)
            try:
                operators = _operators(layer.layer, (x,), {})
            except StaysClosedError as reason:
                self.layer(layer).layer.stays_closed = str(reason)
            else:
                named = tf_keras.Model(operators.inputs, operators.outputs, name=layer.layer.name)
                config = {"name": layer.name, "dtype": layer.dtype_policy.name}
                self._made[id(layer)] = layer, tf_keras.layers.TimeDistributed(named, **config)
        return self._made[id(layer)][1]

    def _operator_names(self, layer: Any, operators: tf_keras.Model) -> Iterator[str]:
        """A name for each operator in the order of their calls; the last has the Lambda's."""
        layers = [node.layer for node in nodes_in_order(operators)]
        for number, operator in enumerate(layers, start=1):
            own = str(getattr(operator, "symbol", operator.name)).rsplit(".", 1)[-1]
            stem = layer.name if number == len(layers) else f"{layer.name}_{own}"
            is_first = stem == layer.name and f"{stem} opened" not in self._names
            name, count = stem, 0
            while name in self._names and not is_first:
                count += 1
                name = f"{stem}_{count}"
            self._names |= {name, f"{stem} opened"}
            yield name


def _operators(
    layer: tf_keras.layers.Lambda, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tf_keras.Model:
    """A model of operator layers alone that computes what a call of a Lambda layer does.

    Raises:
        StaysClosedError: there is none.
    """
    if len(args) != 1 or any(value is not None for value in kwargs.values()):
        raise StaysClosedError("its call is given more than its inputs")
    _require_plain(layer, args[0])

    def function(values: Any) -> Any:
        cast = tf.nest.map_structure(lambda value: _autocast(layer, value), values)
        return layer.function(cast, **layer.arguments)

    return recorded(function, args[0])


def _require_plain(layer: tf_keras.layers.Lambda, inputs: Any) -> None:
    if layer._fn_expects_training_arg or layer._fn_expects_mask_arg:
        raise StaysClosedError("its function depends on training or on a mask")
    if layer.mask is not None or layer.activity_regularizer is not None or layer.weights:
        raise StaysClosedError("it has a mask, weights or an activity regularizer")
    if any(getattr(t, "_keras_mask", None) is not None for t in tf.nest.flatten(inputs)):
        raise StaysClosedError("a mask ends at it")


def _autocast(layer: Any, value: Any) -> Any:
    """What Keras makes of an input before the function sees it."""
    wanted = layer._compute_dtype_object
    is_other = layer._autocast and wanted and value.dtype.is_floating and value.dtype != wanted
    return tf.cast(value, wanted) if is_other else value
