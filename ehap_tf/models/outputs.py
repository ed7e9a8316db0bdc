"""What a model's outputs are called, and whether they are logits or probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import layer_of, operator_kind
from ehap_tf.models.kinds import function_kind


def output_names(model: tf_keras.Model) -> list[str]:
    """The names by which Keras takes losses and labels of the outputs, in the order of `outputs`.

    They are the keys where the model gives a dict, else the names of the layers.
    """
    outputs = model._nested_outputs
    if isinstance(outputs, Mapping) and not any(map(tf.nest.is_nested, outputs.values())):
        return sorted(outputs)
    return list(model.output_names)


def ends_in_softmax(model: tf_keras.Model) -> bool:
    """Whether the model's output is that of a softmax, as a layer, an operator or an activation.

    Layers inside wrappers (quantization) and nested models are looked into.
    """
    layer = _last_layer(model)
    return isinstance(layer, tf_keras.layers.Softmax) or _ends_in(layer, "softmax")


def ends_in_sigmoid(model: tf_keras.Model) -> bool:
    """Whether the model's output is that of a sigmoid; as `ends_in_softmax`."""
    return _ends_in(_last_layer(model), "sigmoid")


@dataclasses.dataclass(frozen=True)
class Readout:
    """How a classifier's outputs are read.

    Attributes:
        is_binary: whether it has a single output, for the second of two classes.
        are_probabilities: whether a softmax or sigmoid gave them; they are logits otherwise.
    """

    is_binary: bool
    are_probabilities: bool

    @classmethod
    def of(cls, model: tf_keras.Model) -> Readout:
        """That of a model with one output."""
        is_binary = model.outputs[0].shape[-1] == 1
        return cls(is_binary, (ends_in_sigmoid if is_binary else ends_in_softmax)(model))

    @property
    def threshold(self) -> float | None:
        """Above which a single output means the second class; None where there are several."""
        if not self.is_binary:
            return None
        return 0.5 if self.are_probabilities else 0.0

    def loss(self, reduction: str = tf_keras.losses.Reduction.AUTO) -> tf_keras.losses.Loss:
        """The cross-entropy with class numbers: the mean over a batch, or as `reduction` says."""
        kind = tf_keras.losses.SparseCategoricalCrossentropy
        if self.is_binary:
            kind = tf_keras.losses.BinaryCrossentropy
        return kind(from_logits=not self.are_probabilities, reduction=reduction)

    def labels(self, numbers: Any) -> Any:
        """Class numbers, shape (examples,), as `loss` takes them."""
        return numbers[:, None] if self.is_binary else numbers


def _last_layer(model: tf_keras.Model) -> Any:
    layer = layer_of(model.outputs[0]) if model.outputs else model.layers[-1]
    while True:
        if isinstance(layer, tf_keras.Model) and layer.outputs:
            layer = layer_of(layer.outputs[0])
        elif isinstance(layer, tf_keras.layers.Wrapper):
            layer = layer.layer
        else:
            return layer


def _ends_in(layer: Any, function: str) -> bool:
    # An operator layer is the function written as tf.nn.softmax(x).
    if operator_kind(layer) == function:
        return True
    activation = getattr(layer, "activation", None)
    # Quantization hides the activation in an object of its own that knows the original one.
    activation = getattr(activation, "activation", activation)
    if function == "softmax" and isinstance(activation, tf_keras.layers.Softmax):
        return True
    return function in (function_kind(activation), getattr(activation, "__name__", ""))
