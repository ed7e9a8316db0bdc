"""The quantization scheme, for our own `quantize` and for TFMOT's `quantize_apply`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.quantize_scheme import (
    QuantizeScheme,
)

from ehap_tf.channels import ScatterChannels
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.integer_rules.own_layers import (
    EhapFloatLayer,
    EhapHardSwish,
    EhapMean,
    EhapQuantizeLayer,
    EhapRsqrt,
    EhapSlice,
    EhapStopGradient,
)
from ehap_tf.quantization.integer_rules.wrappers import EhapQuantizeWrapper
from ehap_tf.quantization.plan.configs import EhapQuantizeConfig
from ehap_tf.quantization.plan.layout import EhapQuantizeLayoutTransform
from ehap_tf.quantization.plan.quantization_plan import QuantizationPlan
from ehap_tf.quantization.plan.quantizers import (
    EhapActivationQuantizer,
    EhapFixedQuantizer,
    EhapWeightQuantizer,
)
from ehap_tf.quantization.plan.registry import EhapQuantizeRegistry


class EhapQuantizeScheme(QuantizeScheme):
    """Symmetric weights, asymmetric activations, as TFLite's integer kernels compute.

    - Kernels: symmetric, narrow range, one scale for each output channel or unit (for each real
      channel of a depthwise convolution).
    - Activations, the model's input and output included: asymmetric, 8 bits, a warm-started
      moving average of the observed range.
    - BatchNorm and ReLU are part of the operator before them; layers that only move values
      (pools, padding, reshapes, `ScatterChannels`) keep their input's scale, to which
      averages among them are rounded. What only a Concatenate, Maximum or Minimum reads is
      written with the scale of its result.

    Usable with TFMOT's own functions:

        import tensorflow_model_optimization as tfmot
        from ehap_tf import EhapQuantizeScheme, calibrate, quantization_scope

        with quantization_scope():
            annotated = tfmot.quantization.keras.quantize_annotate_model(model)
            qat = tfmot.quantization.keras.quantize_apply(annotated, EhapQuantizeScheme())
        calibrate(qat, (x,))

    Such a model has TFMOT's wrappers, which train the kernels of layers that are not trainable, and
    list weights so that files do not load back; `quantize` has wrappers without these flaws, for
    `freeze_batch_norm` and `save_qat` too.

    Args:
        weight_bits: 8, or 4 (stored as 4 bits in the file).
        activation_bits: 8, or 16 (symmetric, with kernels of 8 bits).
        act_percentile: share in percent of an activation's values that its range holds.
        allow_float: keep layers without an integer kernel in float.
        keep_float: names or patterns of layers to keep in float, see `plan_quantization`.

    Raises:
        ValueError: an argument is outside its values.
    """

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int = 8,
        act_percentile: float = 100.0,
        allow_float: bool = False,
        keep_float: Sequence[str] = (),
    ) -> None:
        self._registry = EhapQuantizeRegistry(
            QuantizationPlan(
                (), weight_bits, activation_bits, act_percentile, keep_float, allow_float
            )
        )

    def get_layout_transformer(self) -> EhapQuantizeLayoutTransform:
        """The rewriting of the model into the operators of the file."""
        return EhapQuantizeLayoutTransform(self._registry)

    def get_quantize_registry(self) -> EhapQuantizeRegistry:
        """How each layer is quantized."""
        return self._registry


def quantization_scope() -> Any:
    """A context in which TFMOT and tf_keras find this package's quantization classes by name."""
    return tfmot.quantization.keras.quantize_scope(
        {
            # A QAT model's .h5 holds plain class names: registered ones do not load back.
            kind.__name__: kind
            for kind in (
                EhapQuantizeConfig,
                EhapWeightQuantizer,
                EhapActivationQuantizer,
                EhapFixedQuantizer,
                EhapFloatLayer,
                EhapHardSwish,
                EhapMean,
                EhapOperator,
                EhapQuantizeLayer,
                EhapQuantizeWrapper,
                EhapRsqrt,
                EhapSlice,
                EhapStopGradient,
                ScatterChannels,
            )
        }
    )
