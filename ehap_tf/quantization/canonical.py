"""Any functional model as one flat graph of the layers that quantization knows.

Nested models are inlined, a layer that is called more than once gets a copy for each call (in the
file each call is an operator with scales of its own), activation functions become layers, and
composite layers their parts. Weights are copied; everything computes in float32.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from ehap_tf.quantization.builder import GraphBuilder
from ehap_tf.quantization.graph import rebuild, walk
from ehap_tf.quantization.operators import rewrite_operator
from ehap_tf.quantization.rules import rewrite_layer


def canonical_model(model: tf_keras.Model) -> tf_keras.Model:
    """Returns a flat float32 twin of `model`, with weights of its own.

    Outputs agree with those of `model` to rounding. Layer names are kept; parts of a composite
    layer get its name and a suffix.

    Raises:
        TypeError: `model` is not Functional or Sequential.
        ValueError: a layer has its channels first.
    """
    if not isinstance(model, tf_keras.Model) or not getattr(model, "_is_graph_network", False):
        raise TypeError(
            "model must be a built Functional or Sequential tf_keras model; rebuild a subclassed "
            f"model with tf_keras.Model(inputs, outputs). Received: {type(model).__name__}"
        )
    return rebuild(model, Canonicalizer())


class Canonicalizer:
    """The visitor of `canonical_model`."""

    def __init__(self) -> None:
        self._builder = GraphBuilder()

    def __call__(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what a call of `layer` becomes."""
        if isinstance(layer, tf_keras.Model):
            return self._inline(layer, args)
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"layer {layer.name!r} must have data_format='channels_last'; integer kernels have "
                "no other. Received: 'channels_first'"
            )
        if isinstance(layer, TFOpLambda):
            outputs = rewrite_operator(self._builder, layer, args, kwargs)
            if outputs is not None:
                return outputs
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        return rewrite_layer(self._builder, layer, *args, **kwargs)

    def _inline(self, model: tf_keras.Model, args: tuple[Any, ...]) -> Any:
        outputs = walk(model, tf.nest.flatten(args), self)
        structure = getattr(model, "_nested_outputs", None)
        return outputs[0] if structure is None else tf.nest.pack_sequence_as(structure, outputs)
