"""TFMOT's wrapper around a quantized layer: taking it off, and a flaw of it."""

from __future__ import annotations

import tf_keras
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
