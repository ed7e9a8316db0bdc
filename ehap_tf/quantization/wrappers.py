"""TFMOT's wrapper around a quantized layer: taking it off, and working round its flaws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)


def unwrapped(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """The layer inside TFMOT's wrapper, or `layer` itself."""
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def keep_frozen(qat: tf_keras.Model) -> None:
    """Takes the weights of layers that are not trainable off the list of trainable weights.

    The wrapper puts every quantized weight on it, whatever the layer says. A BatchNorm's gamma and
    beta stay there: only its statistics freeze, see `freeze_batch_norm`.
    """
    for layer in qat.layers:
        inner = unwrapped(layer)
        frozen = inner is not layer and not inner.trainable
        if frozen and not isinstance(inner, tf_keras.layers.BatchNormalization):
            layer._trainable_weights = []


def training_forward(qat: tf_keras.Model) -> Callable[[tf.Tensor], Any]:
    """A traced forward pass in training mode, in which ranges and statistics move.

    Translating the wrappers' Python takes longer than everything else; only layers that stay in
    float may need it.
    """
    known = (QuantizeWrapper, QuantizeLayer, tf_keras.layers.InputLayer)
    has_others = any(not isinstance(layer, known) for layer in qat.layers)

    def forward(x: tf.Tensor) -> Any:
        return qat(x, training=True)

    return tf.function(forward, autograph=has_others, reduce_retracing=True)
