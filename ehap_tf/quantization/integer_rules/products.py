"""The file's operators with kernels, and what the TFLite converter makes of those."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Product:
    """An operator with a kernel.

    Attributes:
        operate: (layer, inputs, kernel) -> the sums of products, without bias.
        transposes: the converter transposes the kernel. It cannot with several scales; given the
            rounded kernel as a constant, it finds the scale of each output channel by its largest
            weight.
        spreads: a filter is a column of the kernel, so that columns of zeros among them put the
            outputs at other channels.
        filters_axis: of the kernel.
        dilates: it has a dilation; else it is written out in zeros in the kernel.
        needs_bias: the converter drops a bias of zeros, and then leaves a ReLU right behind in
            float.
    """

    operate: Callable[[Any, tf.Tensor, tf.Tensor], tf.Tensor]
    transposes: bool = False
    spreads: bool = False
    filters_axis: int = -1
    dilates: bool = True
    needs_bias: bool = False


def _conv_2d(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    padding, dilations = layer.padding.upper(), layer.dilation_rate
    return tf.nn.conv2d(x, kernel, layer.strides, padding, dilations=dilations)


def _depthwise_conv_2d(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    padding, strides = layer.padding.upper(), (1, *layer.strides, 1)
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=layer.dilation_rate)


def _fully_connected(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    del layer
    return tf.linalg.matmul(x, kernel)


def _transpose_conv(layer: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    shape = (x.shape[0], *layer.compute_output_shape(x.shape)[1:])
    return tf.nn.conv2d_transpose(x, kernel, shape, layer.strides, layer.padding.upper())


CONV_2D = Product(_conv_2d, spreads=True)
DEPTHWISE_CONV_2D = Product(_depthwise_conv_2d)
FULLY_CONNECTED = Product(_fully_connected, transposes=True, spreads=True)
TRANSPOSE_CONV = Product(
    _transpose_conv, transposes=True, filters_axis=-2, dilates=False, needs_bias=True
)
