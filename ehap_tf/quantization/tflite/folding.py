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

from ehap_tf.graph import batch_norm_numbers
from ehap_tf.quantization.integer_rules.integer_kernels import product_of
from ehap_tf.quantization.plan.quantizers import (
    EhapWeightQuantizer,
    fake_quantize_symmetric,
    from_channels_last,
    largest_integer,
    to_channels_last,
    weight_limits,
)

LARGEST_BIAS = 2.0**30
"""In units of the int32 accumulator: half of what it holds."""

FINEST_STEP = 1.0 / 128.0
"""Of outputs, in units of the accumulators, which are whole numbers: finer ones tell nothing apart,
and XNNPACK takes no file with one of 1/256."""

LARGEST_SUM = 2.0**29
"""Before an activation's clamp, in steps of the output."""


@dataclasses.dataclass(frozen=True)
class FoldedKernel:
    """What a convolution or Dense operator of the integer file computes with.

    Attributes:
        values: float32 kernel, channels last (see `to_channels_last`), on the integers' grid.
        limits: the magnitude of the largest integer, one for each output channel or a scalar.
        bias: float32, one for each output channel.
        bits: of the kernel's integers; 0 for a kernel that was not rounded.
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
        levels = largest_integer(self.bits)
        return np.rint(self.values / (self.limits / levels)).astype(np.int8)

    def on_input_grid(self, input_step: float) -> FoldedKernel:
        """The kernel as the file stores it for inputs that are multiples of `input_step`.

        The file holds the bias in int32, in units of `input_step` times the kernel's step. A nearly
        dead channel (a BatchNorm gamma near zero) has a step so small that its bias would
        overflow; it then gets the smallest step at which the bias fits.
        """
        levels = largest_integer(self.bits)
        bias = np.abs(self.bias)
        needed = (bias.max() if self.limits.ndim == 0 else bias) * levels
        limits = np.maximum(self.limits, needed / (input_step * LARGEST_BIAS))
        unit = input_step * limits.astype(np.float64) / levels
        return dataclasses.replace(
            self,
            limits=limits.astype(np.float32),
            bias=(np.rint(self.bias / unit) * unit).astype(np.float32),
        )

    def narrowest_range(self, grid: tuple[float, float]) -> float:
        """Of 8-bit outputs: finer steps than its 255th tell nothing apart, or break the runtime.

        A step is at least `FINEST_STEP`. And no sum reaches `LARGEST_SUM` steps: runtimes other
        than XNNPACK shift sums to the left before they multiply, in 32 bits, where a larger one
        comes back with the other sign.

        Args:
            grid: the range of the integers that the layer reads.
        """
        input_step = (grid[1] - grid[0]) / 255.0
        steps = self.on_input_grid(input_step).limits / largest_integer(self.bits)
        weights = np.abs(self.values).sum(axis=tuple(range(self.values.ndim - 1)))
        sums = np.abs(self.bias) + weights * max(abs(grid[0]), abs(grid[1]))
        finest = FINEST_STEP * input_step * float(steps.max()), float(sums.max()) / LARGEST_SUM
        return 255.0 * max(finest)

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

    def constant(self, layer: tf_keras.layers.Layer | None = None) -> tf.Tensor:
        """The kernel in its Keras layout, rounded so that the converter finds its grid.

        Args:
            layer: whose kernel it is; None is a convolution.
        """
        if self.limits.ndim and layer is not None and product_of(layer).transposes:
            with tf.init_scope():  # Not by an operator of the graph that is converted.
                return tf.constant(self._rounded().numpy())
        return self._rounded()

    def _rounded(self) -> tf.Tensor:
        values = tf.constant(self.values)
        if self.bits:
            values = fake_quantize_symmetric(values, tf.constant(self.limits), self.bits)
        return from_channels_last(values, self.grouping, self.shape)

    def operate(self, layer: tf_keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
        """What `layer` computes of `x` with this kernel, the bias not added."""
        return product_of(layer).operate(layer, x, self.constant(layer))


def fold(
    wrapper: QuantizeWrapper,
    batch_norm: tf_keras.layers.BatchNormalization | None,
    rounding: bool = True,
) -> FoldedKernel:
    """Folds `batch_norm`, as it is in inference, into the layer inside `wrapper`.

    Args:
        wrapper: TFMOT's, around a convolution or Dense.
        batch_norm: the BatchNorm that alone reads it, or None. With one scale None only.
        rounding: False gives the float kernel.
    """
    # The wrapper has replaced the layer's attribute by the quantized tensor of its last call.
    kernel, quantizer, _ = wrapper._weight_vars[0]
    assert isinstance(quantizer, EhapWeightQuantizer)
    values = to_channels_last(tf.convert_to_tensor(kernel), quantizer.grouping)
    limits = weight_limits(values, quantizer.grouping)
    quantized = fake_quantize_symmetric(values, limits, quantizer.bits) if rounding else values
    layer = wrapper.layer
    axis = filters_axis(layer, quantizer.grouping)
    identity = np.ones(values.shape[axis]), np.zeros(values.shape[axis])
    gain, shift = identity if batch_norm is None else batch_norm_numbers(batch_norm)
    bias = shift + (layer.bias.numpy() * gain if layer.use_bias else 0.0)
    scaled, folded = _dilated(layer, quantized.numpy()), limits.numpy()
    if batch_norm is not None:
        scaled, folded = scaled * gain, folded * np.where(gain == 0.0, 1.0, np.abs(gain))
    return FoldedKernel(
        values=scaled.astype(np.float32),
        limits=np.asarray(folded, np.float32),
        bias=bias.astype(np.float32),
        bits=quantizer.bits if rounding else 0,
        grouping=quantizer.grouping,
        shape=tuple(kernel.shape),
    )


def filters_axis(layer: tf_keras.layers.Layer, grouping: str) -> int:
    """The axis of filters in `FoldedKernel.values`: with one scale that of the layer's kernel."""
    return product_of(layer).filters_axis if grouping == "tensor" else -1


def _dilated(layer: tf_keras.layers.Layer, kernel: np.ndarray) -> np.ndarray:
    """The kernel with its dilation written out in zeros, where the file's operator has none."""
    if product_of(layer).dilates:
        return kernel
    rows, columns = layer.dilation_rate
    height, width = kernel.shape[:2]
    spread = np.zeros(
        ((height - 1) * rows + 1, (width - 1) * columns + 1, *kernel.shape[2:]), kernel.dtype
    )
    spread[::rows, ::columns] = kernel
    return spread
