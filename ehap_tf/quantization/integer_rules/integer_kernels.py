"""What the file's operator for a layer does with its numbers: one declaration per layer class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import is_identity_at_inference
from ehap_tf.models.kinds import function_kind
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.integer_rules.own_layers import (
    EhapHardSwish,
    EhapMean,
    EhapRsqrt,
    EhapSlice,
)

layers = tf_keras.layers


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

OUTPUTS = ("observed", "grid", "one_grid", "exact", "unit", "signed_unit", "log_unit")


@dataclasses.dataclass(frozen=True)
class IntegerKernel:
    """On whose grid an operator of the file writes, and which weights it holds as integers.

    Attributes:
        output: "observed" (a scale and a zero point of its own), "grid" (those of what it reads: it
            moves or selects values), "one_grid" (it reads all its inputs with those that it writes
            with), "exact" (truth values or places, which nothing quantizes), or a range that the
            runtime prescribes: "unit" ([0, 255/256]), "signed_unit" ([-1, 127/128]) or "log_unit"
            ([-255/16, 0]).
        weights: the attribute of the weight that the file holds as integers, or None.
        scales: which of its entries share a scale, see `EhapWeightQuantizer`.
        four_bits: whether the file can hold it in 4 bits.
        multiplies: whether it is a convolution or Dense, whose sums of products take in a bias and
            a BatchNorm.
        ends_in_relu: whether a ReLU right behind is part of the operator, at no cost.
        averages: whether it computes new values that it rounds to its input's grid.
        product: which convolution it is, or Dense, if it is one.

    Raises:
        ValueError: `output` is none of these.
    """

    output: str = "observed"
    weights: str | None = None
    scales: str = "channel"
    four_bits: bool = False
    multiplies: bool = False
    ends_in_relu: bool = False
    averages: bool = False
    product: Product = CONV_2D

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}. Received: {self.output!r}")


Declaration = IntegerKernel | Callable[[Any], IntegerKernel | None]

_KERNELS: dict[type, Declaration] = {}


def declare(declaration: Declaration, *layer_classes: type) -> None:
    """Says what the operator of these classes does; a function decides layer by layer."""
    _KERNELS.update(dict.fromkeys(layer_classes, declaration))


def integer_kernel(layer: Any) -> IntegerKernel | None:
    """What the file's operator for a layer of the canonical graph does; None: it has none."""
    if is_identity_at_inference(layer):
        return ON_GRID
    declared = _KERNELS.get(type(layer))
    return declared if declared is None or isinstance(declared, IntegerKernel) else declared(layer)


def multiplies(layer: Any) -> bool:
    """Whether a layer is a convolution or Dense in integers."""
    kernel = integer_kernel(layer)
    return kernel is not None and kernel.multiplies


def product_of(layer: Any) -> Product:
    """Which convolution a layer is in integers, or Dense."""
    kernel = integer_kernel(layer)
    assert kernel is not None and kernel.multiplies
    return kernel.product


def keeps_grid(layer: Any) -> bool:
    """Whether the integer kernel writes with the scale and zero point of what it reads."""
    kernel = integer_kernel(layer)
    return kernel is not None and kernel.output == "grid"


def averages_on_grid(layer: Any) -> bool:
    """Whether the integer kernel computes new values and rounds them to its input's grid."""
    kernel = integer_kernel(layer)
    return kernel is not None and kernel.averages


ON_GRID = IntegerKernel("grid")
AVERAGING = IntegerKernel("grid", averages=True)

ACTIVATION_OUTPUTS = {
    "gelu": "observed",
    "sigmoid": "unit",
    "softmax": "unit",
    "tanh": "signed_unit",
}
"""Activation function -> its output; "unit" and "signed_unit" are prescribed by the kernels."""


def _activation(layer: Any) -> IntegerKernel | None:
    output = ACTIVATION_OUTPUTS.get(function_kind(layer.activation))
    return None if output is None else IntegerKernel(output)


def _operator(layer: EhapOperator) -> IntegerKernel:
    # What it reads on another grid the converter brings to its own, by an operator before it.
    output = "observed" if layer.of.output == "one_grid" else layer.of.output
    return IntegerKernel(output, averages=layer.of.averages)


def _relu(layer: Any) -> IntegerKernel | None:
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return None
    return IntegerKernel()


def _softmax(layer: Any) -> IntegerKernel | None:
    return IntegerKernel("unit") if np.size(layer.axis) == 1 else None


def _up_sampling(layer: Any) -> IntegerKernel | None:
    return {"nearest": ON_GRID, "bilinear": AVERAGING}.get(layer.interpolation)


_PRODUCT = IntegerKernel(weights="kernel", four_bits=True, multiplies=True, ends_in_relu=True)

declare(_PRODUCT, layers.Conv2D)
declare(dataclasses.replace(_PRODUCT, product=FULLY_CONNECTED), layers.Dense)
declare(
    dataclasses.replace(
        _PRODUCT, weights="depthwise_kernel", scales="depthwise", product=DEPTHWISE_CONV_2D
    ),
    layers.DepthwiseConv2D,
)
declare(
    dataclasses.replace(_PRODUCT, scales="transposed", four_bits=False, product=TRANSPOSE_CONV),
    layers.Conv2DTranspose,
)
declare(IntegerKernel(weights="alpha", scales="tensor"), layers.PReLU)
declare(
    ON_GRID,
    EhapSlice, ScatterChannels, layers.Cropping2D, layers.Flatten, layers.GlobalMaxPooling2D,
    layers.MaxPooling2D, layers.Permute, layers.Reshape, layers.ZeroPadding2D,
)  # fmt: skip
declare(AVERAGING, layers.AveragePooling2D)
declare(IntegerKernel("one_grid"), layers.Concatenate, layers.Maximum, layers.Minimum)
declare(
    IntegerKernel(ends_in_relu=True),
    layers.Add, layers.BatchNormalization, layers.Multiply, layers.Subtract,
)  # fmt: skip
declare(
    IntegerKernel(),
    EhapHardSwish, EhapMean, EhapRsqrt, layers.GlobalAveragePooling2D, layers.LeakyReLU,
)  # fmt: skip
declare(_activation, layers.Activation)
declare(_operator, EhapOperator)
declare(_relu, layers.ReLU)
declare(_softmax, layers.Softmax)
declare(_up_sampling, layers.UpSampling2D)
