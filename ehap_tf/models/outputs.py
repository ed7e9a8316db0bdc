"""What a model's outputs are called, and whether they are logits or probabilities."""

from __future__ import annotations

from collections.abc import Mapping

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
    layer = layer_of(model.outputs[0]) if model.outputs else model.layers[-1]
    while True:
        if isinstance(layer, tf_keras.Model) and layer.outputs:
            layer = layer_of(layer.outputs[0])
        elif isinstance(layer, tf_keras.layers.Wrapper):
            layer = layer.layer
        else:
            break
    # An operator layer is a softmax written as tf.nn.softmax(x).
    if operator_kind(layer) == "softmax" or isinstance(layer, tf_keras.layers.Softmax):
        return True
    activation = getattr(layer, "activation", None)
    # Quantization hides the activation in an object of its own that knows the original one.
    activation = getattr(activation, "activation", activation)
    if isinstance(activation, tf_keras.layers.Softmax):
        return True
    return "softmax" in (function_kind(activation), getattr(activation, "__name__", ""))
