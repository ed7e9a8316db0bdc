"""A tf_keras model as an equal Keras 3 model, rebuilt call by call."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import layer_of, replay
from ehap_tf.models.checks import require_functional
from ehap_tf.models.keras3.call_arguments import given_arguments
from ehap_tf.models.keras3.layers import translated_layer
from ehap_tf.models.keras3.operator_conversion import call_in_keras3, is_operator
from ehap_tf.models.keras3.weights import copy_weights


def to_keras3(model: tf_keras.Model) -> Any:
    """A Keras 3 model with the outputs, weights and layer names of a tf_keras model.

    The way back for models that came from Keras 3. Slim and masked models have layers of this
    package in them: `import ehap_tf` makes them known to Keras 3, so that a saved model loads. The
    new model is not compiled; `model` stays as it is.

    Args:
        model: a Functional or Sequential tf_keras model, nested ones included.

    Raises:
        TypeError: not a tf_keras model, or a subclassed one.
        ValueError: a layer or argument that Keras 3 does not have; the message names it.
    """
    require_functional(model)
    # Registers the layers of slim models with Keras 3.
    from ehap_tf.models.keras3 import twins  # noqa: F401

    conversion = _Conversion()
    copy = conversion.convert(model)
    conversion.finish()
    copy._trainable = model._trainable
    return copy


class _Conversion:
    """One conversion; remembers which layer became which, so that shared layers stay shared."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def convert(self, model: tf_keras.Model) -> Any:
        """The model without its weights."""
        import keras

        if isinstance(model, tf_keras.Sequential):
            return self._sequential(model)
        inputs = [_input(tensor) for tensor in model.inputs]
        packed = (
            tf.nest.pack_sequence_as(model._nested_inputs, inputs),
            tf.nest.pack_sequence_as(model._nested_outputs, replay(model, inputs, self._call)),
        )
        return keras.Model(*map(_plain, packed), name=model.name)

    def finish(self) -> None:
        """Copies weights and trainable flags, once everything is built."""
        for old, new in self._made.values():
            if isinstance(old, (tf_keras.Model, tf_keras.layers.TimeDistributed)):
                # What is inside has its own weights and flags; the setter would push this one down.
                new._trainable = old._trainable
            else:
                copy_weights(old, new)
                new.trainable = old._trainable

    def _sequential(self, model: tf_keras.Sequential) -> Any:
        import keras

        (tensor,) = model.inputs
        first = keras.layers.InputLayer(
            batch_shape=tuple(tensor.shape),
            dtype=tensor.dtype.name,
            name=layer_of(tensor).name,
        )
        return keras.Sequential([first, *map(self._layer, model.layers)], name=model.name)

    def _layer(self, layer: Any) -> Any:
        import keras

        if id(layer) not in self._made:
            if isinstance(layer, tf_keras.Model):
                new = self.convert(layer)
            elif type(layer) is tf_keras.layers.TimeDistributed:
                # What it holds may be a model, or be called elsewhere too.
                inner, policy = self._layer(layer.layer), layer.dtype_policy.name
                new = keras.layers.TimeDistributed(inner, name=layer.name, dtype=policy)
            else:
                new = translated_layer(layer, keras)
            self._made[id(layer)] = (layer, new)
        return self._made[id(layer)][1]

    def _call(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_operator(layer):
            return call_in_keras3(layer, args, kwargs)
        counterpart = self._layer(layer)
        args, kwargs = given_arguments(layer, _plain(args), kwargs, counterpart)
        recurrent = (tf_keras.layers.RNN, tf_keras.layers.Bidirectional)
        if isinstance(layer, recurrent) and isinstance(args[0], list):
            # tf_keras puts the states that a call is given behind its input.
            args, kwargs = (args[0][0],), {**kwargs, "initial_state": args[0][1:]}
        return counterpart(*args, **kwargs)


def _input(tensor: Any) -> Any:
    import keras

    return keras.Input(
        batch_shape=tuple(tensor.shape),
        dtype=tensor.dtype.name,
        name=layer_of(tensor).name,
    )


def _plain(structure: Any) -> Any:
    """Without the wrappers that tf_keras puts around lists and dicts of its models."""
    if isinstance(structure, dict) or type(structure).__name__ == "_DictWrapper":
        return {key: _plain(value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [_plain(value) for value in structure]
    if isinstance(structure, tuple):
        return tuple(_plain(value) for value in structure)
    return structure
