"""Which layers have an integer kernel in TFLite, and how each is quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry as default_registry,
)

from ehap_tf.graph import is_identity_at_inference
from ehap_tf.models.kinds import function_kind, layer_kind, spelled
from ehap_tf.quantization.configs import EhapQuantizeConfig

KERNELS = {
    "Conv2D": ("kernel", "channel"),
    "DepthwiseConv2D": ("depthwise_kernel", "depthwise"),
    "Conv2DTranspose": ("kernel", "transposed"),
    "Dense": ("kernel", "channel"),
}
"""Layer class -> attribute of its kernel, and which of its weights share a scale."""

FOUR_BIT_KERNELS = frozenset(KERNELS) - {"Conv2DTranspose"}
"""Those that the file can hold in 4 bits."""

WEIGHTS = KERNELS | {"PReLU": ("alpha", "tensor")}
"""The same for every layer with weights that the file holds as integers."""

KEEPS_GRID = frozenset(
    {
        "AveragePooling2D",
        "Cropping2D",
        "EhapSlice",
        "Flatten",
        "GlobalMaxPooling2D",
        "MaxPooling2D",
        "Permute",
        "Reshape",
        "ScatterChannels",
        "UpSampling2D",
        "ZeroPadding2D",
    }
)
"""Their integer kernels write with the scale and zero point of what they read."""

ONE_GRID = frozenset({"Concatenate", "Maximum", "Minimum"})
"""Their integer kernels read everything with the scale and zero point they write with."""

QUANTIZES_OUTPUT = ONE_GRID | frozenset(
    {
        "Add",
        "BatchNormalization",
        "EhapHardSwish",
        "EhapMean",
        "EhapRsqrt",
        "GlobalAveragePooling2D",
        "LeakyReLU",
        "Multiply",
        "PReLU",
        "ReLU",
        "Subtract",
    }
)
"""Their integer kernels write with a scale of their own."""

ACTIVATION_OUTPUTS = {
    "gelu": "observed",
    "sigmoid": "unit",
    "softmax": "unit",
    "tanh": "signed_unit",
}
"""Activation function -> its output; "unit" and "signed_unit" are prescribed by the kernels."""

OPERATOR_OUTPUTS = {"exact": "none", "grid": "none", "one_grid": "observed"}
"""What `INTEGER_OPERATORS` says of an output that is none of `EhapQuantizeConfig` by itself."""


def keeps_grid(layer: tf_keras.layers.Layer) -> bool:
    """Whether the integer kernel writes with the scale and zero point of what it reads."""
    kind = layer_kind(layer)
    is_mover = kind == "EhapOperator" and layer.of.output == "grid"
    return is_mover or kind in KEEPS_GRID or is_identity_at_inference(layer)


def averages_on_grid(layer: tf_keras.layers.Layer) -> bool:
    """Whether the integer kernel computes new values and rounds them to its input's grid."""
    kind = layer_kind(layer)
    if kind == "EhapOperator":
        return bool(layer.of.averages)
    return kind == "AveragePooling2D" or (
        kind == "UpSampling2D" and layer.interpolation == "bilinear"
    )


class EhapQuantizeRegistry(default_registry.Default8BitQuantizeRegistry):
    """TFMOT's registry with quantization of our own for every layer of the canonical graph.

    Args:
        weight_bits: of all kernels; of a Conv2DTranspose always 8.
        activation_bits: of all observed outputs.
        percentile: of all observed outputs, see `EhapActivationQuantizer`.
        allow_float: let the layout leave layers without an integer kernel in float.
    """

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int = 8,
        percentile: float = 100.0,
        allow_float: bool = False,
    ) -> None:
        super().__init__()
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.percentile = percentile
        self.allow_float = allow_float

    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        """Whether the layer's computation exists in integers."""
        return self._output(layer) is not None

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> EhapQuantizeConfig:
        """The layer's weights and, unless the kernel keeps its input's grid, its output.

        Raises:
            ValueError: there is no integer kernel.
        """
        kind = layer_kind(layer)
        weights, grouping = WEIGHTS.get(kind, (None, "channel"))
        output = self._output(layer)
        if output is None:
            raise ValueError(
                f"layer {layer.name!r} ({_spelled(layer)}) is not supported in integers. Replace "
                "it, or pass allow_float=True to keep it in float32 in an otherwise integer file."
            )
        return EhapQuantizeConfig(
            weights=[] if weights is None else [weights],
            grouping=grouping,
            output=output,
            weight_bits=self.weight_bits if kind in FOUR_BIT_KERNELS else 8,
            activation_bits=self.activation_bits,
            percentile=self.percentile,
        )

    def _output(self, layer: Any) -> str | None:
        name = layer_kind(layer)
        if name == "UpSampling2D" and layer.interpolation not in ("nearest", "bilinear"):
            return None
        if name == "EhapOperator":
            return OPERATOR_OUTPUTS.get(layer.of.output, layer.of.output)
        if keeps_grid(layer):
            return "none"
        if name == "Softmax":
            return "unit" if np.size(layer.axis) == 1 else None
        if name == "ReLU" and (
            layer.threshold or (layer.negative_slope and layer.max_value is not None)
        ):
            return None
        if name == "Activation":
            return ACTIVATION_OUTPUTS.get(function_kind(layer.activation))
        return "observed" if name in QUANTIZES_OUTPUT or name in KERNELS else None


def _spelled(layer: tf_keras.layers.Layer) -> str:
    if isinstance(layer, tf_keras.layers.Activation):
        return f"Activation {spelled(layer.activation)!r}"
    if hasattr(layer, "symbol"):
        return f"the operator {layer.symbol}"
    return spelled(type(layer))
