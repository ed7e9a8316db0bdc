"""How each layer of the canonical graph is quantized, by what its integer kernel does."""

from __future__ import annotations

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry as default_registry,
)

from ehap_tf.models.kinds import spelled
from ehap_tf.quantization.integer_rules.integer_kernels import integer_kernel
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.plan.configs import EhapQuantizeConfig
from ehap_tf.quantization.plan.quantization_plan import QuantizationPlan

CONFIG_OUTPUTS = {"exact": "none", "grid": "none", "one_grid": "observed"}
"""What `IntegerKernel` says of an output that is none of `EhapQuantizeConfig` by itself."""


class EhapQuantizeRegistry(default_registry.Default8BitQuantizeRegistry):
    """TFMOT's registry with quantization of our own for every layer of the canonical graph.

    Args:
        settings: a plan, whose layers are not looked at; None is the default one. The kernel of a
            Conv2DTranspose always has 8 bits.
    """

    def __init__(self, settings: QuantizationPlan | None = None) -> None:
        super().__init__()
        self.settings = settings or QuantizationPlan(())

    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        """Whether the layer's computation exists in integers."""
        return integer_kernel(layer) is not None

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> EhapQuantizeConfig:
        """The layer's weights and, unless the kernel keeps its input's grid, its output.

        Raises:
            ValueError: there is no integer kernel.
        """
        kernel = integer_kernel(layer)
        if kernel is None:
            raise ValueError(
                f"layer {layer.name!r} ({spelled_layer(layer)}) is not supported in integers. "
                "Replace it, say what it is in integers by register_integer_rule, or pass "
                "allow_float=True to keep it in float32 in an otherwise integer file."
            )
        return EhapQuantizeConfig(
            weights=[] if kernel.weights is None else [kernel.weights],
            grouping=kernel.scales,
            output=CONFIG_OUTPUTS.get(kernel.output, kernel.output),
            weight_bits=self.settings.weight_bits if kernel.four_bits else 8,
            activation_bits=self.settings.activation_bits,
            percentile=self.settings.act_percentile,
        )


def spelled_layer(layer: tf_keras.layers.Layer) -> str:
    """What to call a layer's class, or its operator."""
    if isinstance(layer, tf_keras.layers.Activation):
        return f"Activation {spelled(layer.activation)!r}"
    if isinstance(layer, EhapOperator):
        return layer.operator
    if hasattr(layer, "symbol"):
        return f"the operator {layer.symbol}"
    return spelled(type(layer))
