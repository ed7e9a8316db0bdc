"""A quantized convolution with its BatchNorm folded in, as plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)

from ehap_tf.quantization.batch_norm import inference_affine
from ehap_tf.quantization.quantizers import (
    EhapWeightQuantizer,
    fake_quantize_symmetric,
    from_channels_last,
    to_channels_last,
    weight_limits,
)

LARGEST_BIAS = 2.0**30
"""In units of the int32 accumulator: half of what it holds."""


@dataclasses.dataclass(frozen=True)
class FoldedKernel:
    """What a convolution or Dense operator of the integer file computes with.

    Attributes:
        values: float32 kernel, channels last (see `to_channels_last`), on the integers' grid.
        limits: the magnitude of the largest integer, one for each output channel or a scalar.
        bias: float32, one for each output channel.
        bits: of the kernel's integers.
        grouping: see `EhapWeightQuantizer`.
        shape: of the kernel as the Keras layer has it.
    """

    values: np.ndarray
    limits: np.ndarray
    bias: np.ndarray
    bits: int
    grouping: str
    shape: tuple[int, ...]

    @property
    def integers(self) -> np.ndarray:
        """The kernel's integers, int8, channels last."""
        levels = 2 ** (self.bits - 1) - 1
        return np.rint(self.values / (self.limits / levels)).astype(np.int8)

    def with_bias_in_range(self, input_step: float) -> FoldedKernel:
        """Coarsens the step of kernels that are tiny beside their bias.

        The file stores the bias in units of `input_step` times the kernel's step, in int32. A
        nearly dead channel (a BatchNorm gamma near zero) has a step so small that its bias would
        overflow; it then gets the smallest step at which the bias fits.
        """
        levels = 2 ** (self.bits - 1) - 1
        bias = np.abs(self.bias)
        needed = (bias.max() if self.limits.ndim == 0 else bias) * levels
        limits = np.maximum(self.limits, needed / (input_step * LARGEST_BIAS))
        return dataclasses.replace(self, limits=limits.astype(np.float32))

    def scattered(self, positions: Sequence[int], channels: int) -> FoldedKernel:
        """The same outputs at `positions` among `channels`; the others are zero."""

        def spread(vector: np.ndarray, empty: float) -> np.ndarray:
            wide = np.full((*vector.shape[:-1], channels), empty, np.float32)
            wide[..., list(positions)] = vector
            return wide

        return dataclasses.replace(
            self,
            values=spread(self.values, 0.0),
            limits=self.limits if self.limits.ndim == 0 else spread(self.limits, 1.0),
            bias=spread(self.bias, 0.0),
            shape=(*self.shape[:-1], channels),
        )

    def constant(self) -> tf.Tensor:
        """The kernel, fake-quantized for the converter, in its Keras layout."""
        values = fake_quantize_symmetric(
            tf.constant(self.values), tf.constant(self.limits), self.bits
        )
        return from_channels_last(values, self.grouping, self.shape)


def fold(
    wrapper: QuantizeWrapper, batch_norm: tf_keras.layers.BatchNormalization | None
) -> FoldedKernel:
    """Folds `batch_norm`, as it is in inference, into the layer inside `wrapper`.

    Args:
        wrapper: TFMOT's, around a convolution or Dense.
        batch_norm: the BatchNorm that alone reads it, or None. With "tensor" grouping None only.
    """
    # The wrapper has replaced the layer's attribute by the quantized tensor of its last call.
    kernel, quantizer, _ = wrapper._weight_vars[0]
    assert isinstance(quantizer, EhapWeightQuantizer)
    values = to_channels_last(tf.convert_to_tensor(kernel), quantizer.grouping)
    limits = weight_limits(values, quantizer.grouping)
    quantized = fake_quantize_symmetric(values, limits, quantizer.bits).numpy()
    gain, shift = inference_affine(batch_norm, quantized.shape[-1])
    bias = shift
    if wrapper.layer.use_bias:
        bias = bias + wrapper.layer.bias.numpy() * gain
    step_gain = np.where(gain == 0.0, 1.0, np.abs(gain))
    folded = limits.numpy() if batch_norm is None else limits.numpy() * step_gain
    return FoldedKernel(
        values=(quantized * gain).astype(np.float32),
        limits=np.asarray(folded, np.float32),
        bias=bias.astype(np.float32),
        bits=quantizer.bits,
        grouping=quantizer.grouping,
        shape=tuple(kernel.shape),
    )
