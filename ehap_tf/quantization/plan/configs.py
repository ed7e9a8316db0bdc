"""How one layer is quantized: which weights, and what becomes of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization.keras import QuantizeConfig, quantizers

from ehap_tf.quantization.plan.quantizers import (
    EhapActivationQuantizer,
    EhapFixedQuantizer,
    EhapWeightQuantizer,
    EqualByArguments,
)

PRESCRIBED = {
    "unit": (0.0, 255.0 / 256.0),
    "signed_unit": (-1.0, 127.0 / 128.0),
    "log_unit": (-255.0 / 16.0, 0.0),
}
"""Ranges of 8-bit integers that the runtime prescribes."""
OUTPUTS = ("none", "observed", *PRESCRIBED)


class EhapQuantizeConfig(EqualByArguments, QuantizeConfig):
    """Quantizes the named weights of a layer and, if wanted, its output.

    Args:
        weights: attribute names of the layer's weights to quantize.
        grouping: which weights share a scale, see `EhapWeightQuantizer`.
        output: "none" (the next layer quantizes, or the values stay where they are on their
            grid), "observed" (a moving range), "unit" ([0, 255/256], softmax and sigmoid),
            "signed_unit" ([-1, 127/128], tanh) or "log_unit" ([-255/16, 0], log_softmax).
        weight_bits: of the weights.
        activation_bits: of the output, 8 or 16.
        percentile: of an observed output, see `EhapActivationQuantizer`.
    """

    def __init__(
        self,
        weights: Sequence[str] = (),
        grouping: str = "channel",
        output: str = "observed",
        weight_bits: int = 8,
        activation_bits: int = 8,
        percentile: float = 100.0,
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}. Received: {output!r}")
        self.weights = list(weights)
        self.grouping = grouping
        self.output = output
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.percentile = percentile

    def get_weights_and_quantizers(
        self, layer: tf_keras.layers.Layer
    ) -> list[tuple[tf.Variable, quantizers.Quantizer]]:
        """The weights to quantize, each with its quantizer."""
        quantizer = EhapWeightQuantizer(self.weight_bits, self.grouping)
        return [(getattr(layer, name), quantizer) for name in self.weights]

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        """None: the layout gives every activation function a layer of its own."""
        del layer
        return []

    def set_quantize_weights(
        self, layer: tf_keras.layers.Layer, quantize_weights: Sequence[tf.Tensor]
    ) -> None:
        """Lets the layer compute with the quantized weights."""
        for name, value in zip(self.weights, quantize_weights, strict=True):
            setattr(layer, name, value)

    def set_quantize_activations(
        self, layer: tf_keras.layers.Layer, quantize_activations: Sequence[Any]
    ) -> None:
        """Nothing to do, see `get_activations_and_quantizers`."""
        del layer, quantize_activations

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[quantizers.Quantizer]:
        """The quantizer of the layer's output, or an empty list."""
        del layer
        if self.output == "observed":
            return [EhapActivationQuantizer(self.activation_bits, self.percentile)]
        if self.output in PRESCRIBED:
            return [EhapFixedQuantizer(*PRESCRIBED[self.output], self.activation_bits)]
        return []

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return dict(self.__dict__)
