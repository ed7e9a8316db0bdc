"""The TensorFlow functions that a function of tensors calls, as a model of operator layers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.util import tf_decorator
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda
from tf_keras.src.saving.legacy.saved_model import json_utils

from ehap_tf.graph import model_like, nodes_in_order, replay
from ehap_tf.models.keras3.operator_conversion import full_key

# Sizes that axes of unknown size are tried with, of the batch first.
_TRIED_SIZES = ((2, 6), (3, 8))


class StaysClosedError(Exception):
    """A Lambda layer is not taken apart; the message says why."""


def recorded(function: Callable[[Any], Any], like: Any) -> tf_keras.Model:
    """A model of operator layers alone that computes a function, also after it was saved.

    Args:
        function: of a tensor, or of a structure of them.
        like: symbolic tensors of the shapes and types that it will be called on.

    Raises:
        StaysClosedError: there is none.
    """
    reasons = []
    for record in (_recorded_by_tf_keras, _recorded_by_keras3):
        try:
            model = _expanded(record(function, like))
            _require_equal(function, model)
        except StaysClosedError as reason:
            reasons.append(reason)
        except Exception as error:  # whatever a user's function happens to raise
            failed = f"its function cannot be called on symbolic tensors: {_line(error)}"
            reasons.append(StaysClosedError(failed))
        else:
            return model
    raise reasons[0]


def _recorded_by_tf_keras(function: Callable[[Any], Any], like: Any) -> tf_keras.Model:
    inputs = tf.nest.map_structure(
        lambda t: tf_keras.Input(batch_shape=tuple(t.shape), dtype=t.dtype), like
    )
    given = {id(tensor) for tensor in tf.nest.flatten(inputs)}

    def computed(tensor: Any) -> Any:
        # An input that is handed on needs a layer to have the Lambda's name.
        is_input = id(tensor) in given
        return tf_keras.layers.Activation("linear")(tensor) if is_input else tensor

    return tf_keras.Model(inputs, tf.nest.map_structure(computed, function(inputs)))


def _recorded_by_keras3(function: Callable[[Any], Any], like: Any) -> tf_keras.Model:
    """For functions written with `keras.ops`, which take symbolic tensors of Keras 3 alone."""
    import keras

    from ehap_tf.models.keras3.from_keras3 import to_tf_keras

    inputs = tf.nest.map_structure(
        lambda t: keras.Input(batch_shape=tuple(t.shape), dtype=t.dtype.name), like
    )
    return to_tf_keras(keras.Model(inputs, function(inputs)))


def _expanded(model: tf_keras.Model) -> tf_keras.Model:
    """The model with what tf_keras does not save written out.

    Functions of Keras' backend become those of TensorFlow inside, and an ellipsis whole slices.
    """
    for node in nodes_in_order(model):
        if not isinstance(node.layer, TFOpLambda | tf_keras.layers.Activation):
            node.layer.inbound_nodes.remove(node)  # it may be a layer of the caller's
            raise StaysClosedError(f"it calls the layer {node.layer.name!r}")
        given = tf.nest.flatten((node.call_args, node.call_kwargs))
        if any(isinstance(value, tf.Variable) for value in given):
            raise StaysClosedError("it uses a variable")
    if not any(_is_of_backend(node.layer) or _has_ellipsis(node) for node in nodes_in_order(model)):
        return model

    def call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_of_backend(layer):
            return tf_decorator.unwrap(layer.function)[1](*args, **kwargs)
        if isinstance(layer, SlicingOpLambda):
            args = (args[0], *(full_key(key, args[0]) for key in args[1:]))
        return type(layer).from_config(layer.get_config())(*args, **kwargs)

    return _expanded(model_like(model, model.inputs, replay(model, model.inputs, call)))


def _has_ellipsis(node: Any) -> bool:
    return any(value is Ellipsis for value in tf.nest.flatten(node.call_args))


def _is_of_backend(layer: Any) -> bool:
    function = getattr(layer, "function", None)
    inner = tf_decorator.unwrap(function)[1] if function is not None else None
    return inner is not function and str(getattr(inner, "__module__", "")).startswith(
        "tf_keras.src.backend"
    )


def _require_equal(function: Callable[[Any], Any], model: tf_keras.Model) -> None:
    """Checks that a model computes a function, also after it was saved and loaded."""
    config = json.loads(json.dumps(model.get_config(), default=json_utils.get_json_type))
    try:
        models = (model, tf_keras.Model.from_config(config))
    except Exception as error:
        raise StaysClosedError(
            f"tf_keras does not save what its function calls: {_line(error)}"
        ) from error
    rng = np.random.default_rng(0)
    for batch, other in _TRIED_SIZES:
        values = tf.nest.map_structure(
            functools.partial(_random, batch=batch, other=other, rng=rng), model._nested_inputs
        )
        try:
            expected = tf.nest.flatten(function(values))
        except Exception as error:
            raise StaysClosedError(
                f"its function cannot be tried on random inputs: {_line(error)}"
            ) from error
        for one in models:
            received = tf.nest.flatten(one(values, training=False))
            if len(received) != len(expected) or not all(map(_close, received, expected)):
                raise StaysClosedError("its operators alone compute something else")


def _close(one: Any, other: Any) -> bool:
    first, second = np.asarray(one), np.asarray(other)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.dtype.kind in "biu":
        return bool(np.array_equal(first, second))
    tolerance = 1e-5 if first.dtype.itemsize > 2 else 1e-2
    return bool(
        np.allclose(first.astype(np.float64), second.astype(np.float64), tolerance, tolerance, True)
    )


def _random(tensor: Any, batch: int, other: int, rng: np.random.Generator) -> tf.Tensor:
    shape = [size or (other if axis else batch) for axis, size in enumerate(tensor.shape)]
    drawn = rng.normal(size=shape) if tensor.dtype.is_floating else rng.integers(0, 2, shape)
    return tf.cast(drawn, tensor.dtype)


def _line(error: BaseException) -> str:
    # Keras puts a line with the layer's name before what went wrong.
    wrapper = "Exception encountered when calling layer"
    lines = [line for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(wrapper)]
    return lines[0].strip()[:200] if lines else type(error).__name__
