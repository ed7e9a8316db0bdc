"""On which grids the layers of a QAT model write."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)

from ehap_tf.graph import layer_of, producers
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.integer_rules.wrappers import unwrapped
from ehap_tf.quantization.plan.quantizers import (
    EhapActivationQuantizer,
    EhapFixedQuantizer,
    activation_grid,
)

Range = tuple[float, float]


def output_quantizer(
    layer: tf_keras.layers.Layer,
) -> tuple[EhapActivationQuantizer | EhapFixedQuantizer, dict[str, tf.Variable]] | None:
    """What a layer of a QAT model quantizes its output with, and its variables, or None."""
    if isinstance(layer, QuantizeLayer):
        quantizer, variables = layer.quantizer, layer.quantizer_vars
    elif isinstance(layer, QuantizeWrapper) and layer._output_quantizers:
        quantizer, variables = layer._output_quantizers[0], layer._output_quantizer_vars
    else:
        return None
    assert isinstance(quantizer, EhapActivationQuantizer | EhapFixedQuantizer)
    return quantizer, variables


def output_range(layer: tf_keras.layers.Layer) -> Range | None:
    """The range that a layer of a QAT model quantizes its output to, or None.

    Of 16 bits that of 8-bit integers, see `sixteen_bit_step`.

    Raises:
        ValueError: the range has never seen data.
    """
    found = output_quantizer(layer)
    if found is None:
        return None
    quantizer, variables = found
    if "batches" in variables and not float(variables["batches"]):
        raise ValueError(
            f"layer {layer.name!r} has not seen data yet: give quantize() representative_data, or "
            "train the model before you export it."
        )
    low, high = quantizer.limits(variables)
    return float(low), float(high)


def activation_bits(qat: tf_keras.Model) -> int:
    """Of a QAT model, all of whose activations have as many: 8, or 16."""
    found = (output_quantizer(layer) for layer in qat.layers)
    return max((one[0].bits for one in found if one is not None), default=8)


def output_step(qat: tf_keras.Model, index: int = 0) -> float:
    """What one integer step of a QAT model's output number `index` is worth."""
    sources = producers(qat)
    name = layer_of(qat.outputs[index]).name
    while (limits := output_range(qat.get_layer(name))) is None:
        name, *_ = sources[name]  # It keeps the grid of what it reads.
    return float(activation_grid(*limits, activation_bits(qat))[0])


def constants(qat: tf_keras.Model) -> list[np.ndarray]:
    """The constant tensors among what the operators of a QAT model read."""
    operators = (unwrapped(layer) for layer in qat.layers)
    found = []
    for operator in operators:
        if isinstance(operator, EhapOperator):
            found += [value.numpy() for value in operator._values.values()]
            if operator.operator == "pad_with":
                found.append(np.asarray(operator.options["value"], np.float32))
    return found
