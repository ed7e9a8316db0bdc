"""What a model must be before anything is computed from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

_WAY_OUT = (
    "Rebuild it with the functional API: x = tf_keras.Input(shape); "
    "model = tf_keras.Model(x, subclassed.call(x)), every layer made in its constructor"
)


def require_loaded(model: Any, name: str = "model", loader: str = "load_model") -> None:
    """Checks that a model was not given by its path.

    Args:
        model: what was given.
        name: of the caller's argument, for the message.
        loader: the function of this package that reads such a model.

    Raises:
        TypeError: a path.
    """
    if isinstance(model, (str, bytes, os.PathLike)):
        raise TypeError(
            f"{name} must be a model. Received: the path {os.fspath(model)!r}; load it first: "
            f"{name} = ehap_tf.{loader}(path)"
        )


def require_functional(model: Any) -> None:
    """Checks that the graph of layers of `model` is known.

    Raises:
        TypeError: not a Keras model, or a subclassed one (also when nested).
        ValueError: a Sequential model that was not built.
    """
    require_loaded(model)
    if not isinstance(model, tf_keras.Model):
        raise TypeError(
            "model must be a Functional or Sequential tf_keras model. "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    if isinstance(model, tf_keras.Sequential) and not model.inputs:
        raise ValueError(
            f"The Sequential model {model.name!r} has no input shape yet. Call "
            "model.build((None, height, width, channels)) first"
        )
    for inner in model._flatten_layers():
        if isinstance(inner, tf_keras.Model) and not _has_graph(inner):
            where = "" if inner is model else f" inside {model.name!r}"
            raise TypeError(
                f"The model {inner.name!r}{where} is subclassed ({type(inner).__name__}): its "
                f"layers cannot be followed from input to output. {_WAY_OUT}"
            )


def require_finite_weights(model: tf_keras.Model) -> None:
    """Checks that no weight is NaN or infinite.

    Raises:
        ValueError: naming the first such weight.
    """
    for _, weight, wrong in weights_that_are_not_finite(model):
        raise ValueError(
            f"The weight {weight.name!r} of the model {model.name!r} has {wrong} NaN or infinite "
            "values. Load a checkpoint from before the training diverged"
        )


def weights_that_are_not_finite(
    model: tf_keras.Model,
) -> Iterator[tuple[tf_keras.layers.Layer, tf.Variable, int]]:
    """Every such weight, with the layer that owns it and how many numbers are NaN or infinite."""
    for layer in model._flatten_layers(include_self=True, recursive=True):
        for weight in layer._trainable_weights + layer._non_trainable_weights:
            if weight.dtype.is_floating:
                values = weight.numpy().astype(np.float64)
                wrong = int(np.count_nonzero(~np.isfinite(values)))
                if wrong:
                    yield layer, weight, wrong


def require_float(model: tf_keras.Model) -> None:
    """Checks that no layer is wrapped for quantization-aware training.

    Raises:
        ValueError: naming the first such layer.
    """
    for layer in model._flatten_layers():
        if hasattr(layer, "quantize_config"):
            raise ValueError(
                f"model must be the float model. Received: {model.name!r}, quantization-aware in "
                f"the layer {layer.name!r}; give the model that quantize was given"
            )


def require_rankable(model: Any) -> None:
    """Checks that `model` is one whose parts can be ranked.

    Raises:
        TypeError: not a Keras model, or a subclassed one.
        ValueError: not built, quantization-aware, or with weights that are not finite.
    """
    require_functional(model)
    require_float(model)
    require_finite_weights(model)


def require_inputs(model: tf_keras.Model, inputs: Any, name: str = "data") -> None:
    """Checks that `model` takes a batch of inputs.

    Args:
        model: Functional or Sequential.
        inputs: arrays or tensors, in any structure that the model is called with.
        name: of the caller's argument, for the message.

    Raises:
        ValueError: another number of inputs, or another shape.
    """
    arrays = model._flatten_to_reference_inputs(inputs)
    if len(arrays) != len(model.inputs):
        raise ValueError(
            f"{name} must hold an array for each of the model's inputs: {len(model.inputs)}. "
            f"Received: {len(arrays)} arrays; np.stack makes one array of a list of examples"
        )
    for tensor, array in zip(model.inputs, arrays, strict=True):
        if not tensor.shape[1:].is_compatible_with(array.shape[1:]):
            raise ValueError(
                f"{name} must hold inputs of shape {tuple(tensor.shape)}. Received: a batch of "
                f"shape {tuple(array.shape)}; preprocess the inputs as for the model's training"
            )


def _has_graph(model: tf_keras.Model) -> bool:
    plain = (tf_keras.Model, tf_keras.Sequential)
    functional_call = type(model).call in {
        kind.call for kind in (*plain, *tf_keras.Sequential.__mro__) if hasattr(kind, "call")
    }
    return bool(model._is_graph_network) and functional_call
