"""What a layer that owns kernels computes, as a product of unfolded inputs and a matrix."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.graph.least_squares import Sums
from ehap_tf.graph.traits import computes_like

Floats = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

layers = tf_keras.layers

_UNFOLDED_BYTES = 64 * 2**20
"""Unfolded inputs that are computed at once, about."""


class Kernel(abc.ABC):
    """A layer's outputs before its activation, without bias, are unfolded inputs times a matrix.

    There are `groups` independent products: filter f is column f % size of group f // size.

    Args:
        layer: built.
    """

    attribute = "kernel"

    def __init__(self, layer: tf_keras.layers.Layer) -> None:
        self.layer = layer

    @property
    def value(self) -> Floats:
        """The weights to solve for, float32."""
        return np.asarray(getattr(self.layer, self.attribute), np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `value`."""
        return tuple(getattr(self.layer, self.attribute).shape)

    @property
    def bias(self) -> Floats | None:
        """Of every filter, where there is one."""
        return np.asarray(self.layer.bias, np.float32) if self.layer.use_bias else None

    @property
    def filters(self) -> int:
        """The number of outputs."""
        groups, _, columns = self.matrix(self.value).shape
        return int(groups * columns)

    @abc.abstractmethod
    def output_positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the spatial axes of the output for inputs of a shape (batch first)."""

    @abc.abstractmethod
    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """What some output positions see of the inputs.

        Args:
            inputs: float32, batch first, channels last.
            positions: indices into (batch, *output positions), flattened.

        Returns:
            Shape (groups, positions, rows of the matrix), float32.
        """

    @abc.abstractmethod
    def matrix(self, value: Floats) -> Floats:
        """A kernel as a matrix, shape (groups, rows, columns)."""

    @abc.abstractmethod
    def from_matrix(self, matrix: Floats) -> Floats:
        """The inverse of `matrix`."""

    def outputs(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """The outputs before the activation, bias included, shape (positions, filters)."""
        product = products(self.unfolded(inputs, positions), self.matrix(self.value))
        return product if self.bias is None else product + self.bias


def products(unfolded: tf.Tensor, matrix: Floats) -> tf.Tensor:
    """Unfolded inputs times a matrix, shape (positions, filters)."""
    by_group = tf.matmul(unfolded, matrix)
    if len(matrix) == 1:
        return by_group[0]
    return tf.reshape(tf.transpose(by_group, [1, 0, 2]), [unfolded.shape[1], -1])


def rows_at(tensor: tf.Tensor, positions: Indices) -> tf.Tensor:
    """The channels at some positions of (batch, *spatial), flattened."""
    return tf.gather(tf.reshape(tensor, [-1, tensor.shape[-1]]), positions)


def some_positions(total: int, most: int, rng: np.random.Generator) -> Indices:
    """At most so many of the positions [0, total), sorted, drawn at random where there are more."""
    if total <= most:
        return np.arange(total)
    return np.sort(rng.choice(total, most, replace=False, shuffle=False))


def in_parts(positions: Indices, row_bytes: int) -> list[Indices]:
    """Positions in parts whose unfolded inputs, of so many bytes each, are of bounded size."""
    rows = min(max(_UNFOLDED_BYTES // max(row_bytes, 1), 1), Sums.ROWS)
    return np.array_split(positions, -(-len(positions) // rows)) if len(positions) else []


def by_group(outputs: tf.Tensor, groups: int) -> tf.Tensor:
    """What stands in rows (positions, filters) as (groups, positions, filters of one)."""
    if groups == 1:
        return outputs[None]
    return tf.transpose(tf.reshape(outputs, [len(outputs), groups, -1]), [1, 0, 2])


class DenseKernel(Kernel):
    """Dense, on vectors or on every position of a map."""

    def applied(self, inputs: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """The outputs with another kernel, without bias and activation."""
        return tf.tensordot(inputs, value, 1)

    def output_positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As `Kernel` says."""
        return shape[1:-1]

    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """As `Kernel` says."""
        return rows_at(inputs, positions)[None]

    def matrix(self, value: Floats) -> Floats:
        """As `Kernel` says."""
        return value[None]

    def from_matrix(self, matrix: Floats) -> Floats:
        """As `Kernel` says."""
        return matrix[0]


class _Spatial(Kernel):
    """Kernels that see several positions of their input."""

    def output_positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As `Kernel` says."""
        return tuple(len(table) for table in self._tables(shape[1:-1]))

    def _taps(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """Shape (positions, kernel positions, channels); zero where the kernel sees padding."""
        tables = self._tables(inputs.shape[1:-1])
        sizes = (len(inputs), *(len(table) for table in tables))
        example, *places = np.unravel_index(positions, sizes)
        index = example[:, None]
        for size, table, place in zip(inputs.shape[1:-1], tables, places, strict=True):
            seen = table[place]
            inside = (index[:, :, None] >= 0) & (seen[:, None, :] >= 0)
            index = np.where(inside, index[:, :, None] * size + seen[:, None, :], -1)
            index = index.reshape(len(positions), -1)
        flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
        # Padding reads the row of zeros past the end.
        flat = tf.pad(flat, [[0, 1], [0, 0]])
        return tf.gather(flat, np.where(index < 0, flat.shape[0] - 1, index).astype(np.int32))

    def _tables(self, sizes: tuple[int, ...]) -> list[Indices]:
        """For each axis the input position that tap j of output i sees, [i, j]; -1 for padding."""
        layer = self.layer
        axes = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
        return [_table(*axis, layer.padding) for axis in axes]


def _table(size: int, taps: int, stride: int, dilation: int, padding: str) -> Indices:
    extent = dilation * (taps - 1) + 1
    if padding == "same":
        outputs = -(-size // stride)
        first = -(max((outputs - 1) * stride + extent - size, 0) // 2)
    elif padding == "causal":
        outputs, first = -(-size // stride), 1 - extent
    else:
        outputs, first = max(-(-(size - extent + 1) // stride), 0), 0
    seen = first + np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation
    return np.where((seen >= 0) & (seen < size), seen, -1)


class ConvolutionKernel(_Spatial):
    """Conv1D, Conv2D and Conv3D, grouped ones with one system for each group."""

    def applied(self, inputs: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """The outputs with another kernel, without bias and activation, and causal padding."""
        return self.layer.convolution_op(inputs, value)

    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """As `Kernel` says."""
        taps, groups = self._taps(inputs, positions), self.layer.groups
        if groups == 1:
            return tf.reshape(taps, [1, len(positions), -1])
        grouped = tf.reshape(taps, [*taps.shape[:2], groups, -1])
        return tf.reshape(tf.transpose(grouped, [2, 0, 1, 3]), [groups, len(positions), -1])

    def matrix(self, value: Floats) -> Floats:
        """As `Kernel` says."""
        flat = value.reshape(math.prod(value.shape[:-1]), self.layer.groups, -1)
        return flat.transpose(1, 0, 2)

    def from_matrix(self, matrix: Floats) -> Floats:
        """As `Kernel` says."""
        return matrix.transpose(1, 0, 2).reshape(self.shape)


class TransposedKernel(_Spatial):
    """Transposed convolutions; every output position sees the taps that reach it."""

    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """As `Kernel` says."""
        return tf.reshape(self._taps(inputs, positions), [1, len(positions), -1])

    def matrix(self, value: Floats) -> Floats:
        """As `Kernel` says."""
        return np.swapaxes(value, -1, -2).reshape(1, -1, value.shape[-2])

    def from_matrix(self, matrix: Floats) -> Floats:
        """As `Kernel` says."""
        *spatial, filters, inputs = self.shape
        return np.swapaxes(matrix.reshape(*spatial, inputs, filters), -1, -2)

    def _tables(self, sizes: tuple[int, ...]) -> list[Indices]:
        layer = self.layer
        extra = layer.output_padding or (None,) * len(sizes)
        extra = (extra,) if isinstance(extra, int) else tuple(extra)
        axes = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, extra, strict=True)
        return [_transposed_table(*axis, layer.padding) for axis in axes]


def _transposed_table(
    size: int, taps: int, stride: int, dilation: int, extra: int | None, padding: str
) -> Indices:
    outputs = tf_keras.src.utils.conv_utils.deconv_output_length(
        size, taps, padding, output_padding=extra, stride=stride, dilation=dilation
    )
    extent = dilation * (taps - 1) + 1
    before = max((size - 1) * stride + extent - outputs, 0) // 2 if padding == "same" else 0
    # It is the gradient of a convolution of which tap j of output i reads i * stride + j - before.
    origin = np.arange(outputs)[:, None] + before - np.arange(taps) * dilation
    seen = origin // stride
    return np.where((origin % stride == 0) & (seen >= 0) & (seen < size), seen, -1)


class DepthwiseKernel(_Spatial):
    """Depthwise convolutions: one system for each channel."""

    attribute = "depthwise_kernel"

    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """As `Kernel` says."""
        return tf.transpose(self._taps(inputs, positions), [2, 0, 1])

    def matrix(self, value: Floats) -> Floats:
        """As `Kernel` says."""
        return value.reshape(-1, *value.shape[-2:]).transpose(1, 0, 2)

    def from_matrix(self, matrix: Floats) -> Floats:
        """As `Kernel` says."""
        return matrix.transpose(1, 0, 2).reshape(self.shape)


class SeparableKernel(_Spatial):
    """The pointwise kernel of a separable convolution, on what the depthwise one hands it."""

    attribute = "pointwise_kernel"

    def unfolded(self, inputs: tf.Tensor, positions: Indices) -> tf.Tensor:
        """As `Kernel` says."""
        kernel = np.asarray(self.layer.depthwise_kernel, np.float32)
        flat = kernel.reshape(-1, *kernel.shape[-2:])
        between = tf.einsum("mtc,tcf->mcf", self._taps(inputs, positions), flat)
        return tf.reshape(between, [1, len(positions), -1])

    def matrix(self, value: Floats) -> Floats:
        """As `Kernel` says."""
        return value.reshape(1, *value.shape[-2:])

    def from_matrix(self, matrix: Floats) -> Floats:
        """As `Kernel` says."""
        return matrix.reshape(self.shape)


_KERNELS: dict[type, type[Kernel]] = {
    layers.Conv1D: ConvolutionKernel,
    layers.Conv2D: ConvolutionKernel,
    layers.Conv3D: ConvolutionKernel,
    layers.Conv1DTranspose: TransposedKernel,
    layers.Conv2DTranspose: TransposedKernel,
    layers.Conv3DTranspose: TransposedKernel,
    layers.DepthwiseConv1D: DepthwiseKernel,
    layers.DepthwiseConv2D: DepthwiseKernel,
    layers.SeparableConv1D: SeparableKernel,
    layers.SeparableConv2D: SeparableKernel,
    layers.Dense: DenseKernel,
}


def kernel_of(layer: tf_keras.layers.Layer) -> Kernel | None:
    """How the layer's kernel becomes a matrix.

    Returns:
        None for other layers, subclasses that compute something else, and channels_first ones.
    """
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return None
    base = next((base for base in type(layer).__mro__ if base in _KERNELS), None)
    return _KERNELS[base](layer) if base is not None and computes_like(layer, base) else None
