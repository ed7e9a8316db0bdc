"""A Keras 3 model as an equal tf_keras model, rebuilt call by call."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import is_symbolic, made_by, nodes_in_order, propagate_calls
from ehap_tf.models.checks import require_loaded
from ehap_tf.models.keras3.call_arguments import (
    automatic_masks,
    given_arguments,
    require_same_masks,
)
from ehap_tf.models.keras3.compile_state import copy_compile_state
from ehap_tf.models.keras3.detection import is_keras3_model
from ehap_tf.models.keras3.layers import translated_layer
from ehap_tf.models.keras3.objects import CannotTranslateError
from ehap_tf.models.keras3.operator_conversion import call_in_tf_keras
from ehap_tf.models.keras3.weights import copy_weights

_WAY_OUT = (
    "Rebuild it with the functional API: x = keras.Input(shape); "
    "model = keras.Model(x, subclassed.call(x)), every layer made in its constructor"
)


def to_tf_keras(model: Any) -> tf_keras.Model:
    """A tf_keras model with the outputs, weights and layer names of a Keras 3 model.

    Nested models stay nested and shared layers shared; regularizers, constraints, dtype policies
    and trainable flags are kept, and so are loss and optimizer (without its state) of a compiled
    model. Operators such as `x * 2` become operator layers of the same name. `model` stays as it
    is.

    Args:
        model: a Functional or Sequential model of Keras 3, nested ones included.

    Raises:
        TypeError: not a Keras 3 model, or a subclassed one.
        ValueError: a layer, operation or argument that tf_keras does not have; the message names
            it.
    """
    require_loaded(model)
    if not is_keras3_model(model):
        raise TypeError(
            "model must be a Functional or Sequential model of Keras 3. "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    _require_graph(model, model)
    conversion = _Conversion(model)
    copy = conversion.convert(model)
    conversion.finish()
    copy._trainable = model.trainable
    copy_compile_state(model, copy)
    return copy


class _Conversion:
    """One conversion; remembers which layer became which, so that shared layers stay shared."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._made: dict[int, tuple[Any, Any]] = {}

    def convert(self, model: Any) -> tf_keras.Model:
        """The model without its weights."""
        if _is_sequential(model):
            return self._sequential(model)
        inputs = [_input(tensor) for tensor in model.inputs]
        outputs = propagate_calls(_calls(model), model.inputs, inputs, model.outputs, self._visit)
        tensors = zip((*model.inputs, *model.outputs), (*inputs, *outputs), strict=True)
        of_tensor = {id(old): new for old, new in tensors}
        return tf_keras.Model(
            _replaced(model._inputs_struct, of_tensor),
            _replaced(model._outputs_struct, of_tensor),
            name=model.name,
        )

    def _visit(self, node: _Call, tensors: list[Any]) -> list[Any]:
        of_tensor = dict(zip(map(id, node.keras_inputs), tensors, strict=True))
        if _is_layer(node.operation):
            require_same_masks(node.operation, node.arguments, of_tensor)
        args, kwargs = node.arguments.fill_in(of_tensor)
        kwargs = {name: value for name, value in kwargs.items() if name not in node.masks}
        outputs = list(tf.nest.flatten(self._call(node.operation, args, kwargs)))
        _require_same_shapes(node.operation, node.outputs, outputs)
        return outputs

    def finish(self) -> None:
        """Copies weights and trainable flags, once everything is built."""
        for old, new in self._made.values():
            if not is_keras3_model(old):
                copy_weights(old, new)
            # The setter would push the flag down onto layers that have flags of their own.
            new._trainable = old.trainable

    def _sequential(self, model: Any) -> tf_keras.Model:
        (tensor,) = model.inputs
        first = tf_keras.layers.InputLayer(
            batch_input_shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            name=made_by(tensor)[0].operation.name,
        )
        copy = tf_keras.Sequential([first, *map(self._layer, model.layers)], name=model.name)
        _require_same_shapes(model, model.outputs, copy.outputs)
        return copy

    def _layer(self, layer: Any) -> Any:
        if id(layer) not in self._made:
            if is_keras3_model(layer):
                _require_graph(layer, self._root)
                new = self.convert(layer)
            else:
                new = translated_layer(layer, tf_keras)
            self._made[id(layer)] = (layer, new)
        return self._made[id(layer)][1]

    def _call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_layer(operation):
            call: Any = self._layer(operation)
            args, kwargs = given_arguments(operation, args, kwargs, call)
        else:
            call = lambda *a, **k: call_in_tf_keras(operation, a, k)  # noqa: E731
        try:
            return call(*args, **kwargs)
        except CannotTranslateError:
            raise
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise CannotTranslateError(
                f"layer {operation.name!r} ({type(operation).__name__}): its call cannot be "
                f"repeated in tf_keras: {error}"
            ) from error


@dataclasses.dataclass(frozen=True)
class _Call:
    """A node of a graph of Keras 3, and the masks not to repeat in its call."""

    operation: Any
    arguments: Any
    outputs: list[Any]
    masks: frozenset[str]

    @property
    def keras_inputs(self) -> list[Any]:
        """The symbolic tensors among the arguments that are repeated."""
        kwargs = {k: v for k, v in self.arguments.kwargs.items() if k not in self.masks}
        return list(filter(is_symbolic, tf.nest.flatten((self.arguments.args, kwargs))))


def _calls(model: Any) -> list[_Call]:
    """The calls of a graph of Keras 3, producers first, without those that only make such masks."""
    calls: list[_Call] = []
    wanted = {id(tensor) for tensor in model.outputs}
    for node in reversed(list(nodes_in_order(model))):
        if wanted.isdisjoint(map(id, node.outputs)):
            continue
        masks: frozenset[str] = frozenset()
        if _is_layer(node.operation):
            masks = automatic_masks(node.operation, node.arguments)
        calls.append(_Call(node.operation, node.arguments, node.outputs, masks))
        wanted |= set(map(id, calls[-1].keras_inputs))
    return calls[::-1]


def _require_same_shapes(operation: Any, old: list[Any], new: list[Any]) -> None:
    """Checks that a call gives what it does in Keras 3, as far as the shapes tell."""
    for one, other in zip(old, new, strict=True):
        if not tf.TensorShape(one.shape).is_compatible_with(other.shape):
            raise CannotTranslateError(
                f"layer {operation.name!r} ({type(operation).__name__}): gives the shape "
                f"{tuple(one.shape)} in Keras 3 and {tuple(other.shape)} in tf_keras, which does "
                "not take all of its arguments"
            )


def _input(tensor: Any) -> Any:
    return tf_keras.Input(
        batch_shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        name=made_by(tensor)[0].operation.name,
        sparse=bool(getattr(tensor, "sparse", False)),
    )


def _replaced(structure: Any, of_tensor: dict[int, Any]) -> Any:
    """A structure of tensors with each tensor replaced."""
    if isinstance(structure, dict):
        return {key: _replaced(value, of_tensor) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_replaced(value, of_tensor) for value in structure]
    return of_tensor[id(structure)]


def _is_layer(operation: Any) -> bool:
    import keras

    return isinstance(operation, keras.layers.Layer)


def _is_sequential(model: Any) -> bool:
    import keras

    return isinstance(model, keras.Sequential)


def _require_graph(model: Any, root: Any) -> None:
    import keras

    where = "" if model is root else f" inside {root.name!r}"
    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise ValueError(
                f"The Sequential model {model.name!r}{where} has no input shape yet. Call "
                "model.build((None, height, width, channels)) first"
            )
        functional_call = type(model).call is keras.Sequential.call
    else:
        functional = type(keras.Model(x := keras.Input((1,)), x))
        functional_call = isinstance(model, functional) and type(model).call is functional.call
    if not functional_call:
        raise TypeError(
            f"The model {model.name!r}{where} is subclassed ({type(model).__name__}): its layers "
            f"cannot be followed from input to output. {_WAY_OUT}"
        )
