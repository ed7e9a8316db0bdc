"""What each Keras layer becomes in the canonical graph, where it is not simply copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from ehap_tf.models.kinds import function_kind, layer_kind
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.moving_operators import resize
from ehap_tf.quantization.integer_rules.one_row import behind_axes, in_one_row, padded_causally
from ehap_tf.quantization.integer_rules.own_layers import EhapMean
from ehap_tf.quantization.integer_rules.product_rules import attention, dot, einsum_dense
from ehap_tf.quantization.integer_rules.reducing_operators import l2_normalize
from ehap_tf.quantization.integer_rules.rewriting import rewrite_layer, rule_for
from ehap_tf.quantization.integer_rules.smooth_activations import elu

layers = tf_keras.layers


def _activate(builder: GraphBuilder, activation: Any, x: Any, name: str) -> Any:
    """Applies a function, or a layer in the place of one."""
    if isinstance(activation, layers.Layer):
        return rewrite_layer(builder, activation, x)
    return builder.activate(activation, x, name)


@rule_for(layers.Activation)
def _activation(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    return _activate(builder, layer.activation, x, layer.name)


def _activate_after(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    """The activation of a layer of another kind, as a layer behind it."""
    kind = function_kind(layer.activation) or "activation"
    return _activate(builder, layer.activation, x, f"{layer.name}_{kind}")


@rule_for(layers.Conv2D, layers.Conv2DTranspose, layers.DepthwiseConv2D)
def _with_activation(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    return _activate_after(builder, layer, builder.copy(layer, without=("activation",))(x))


def _one_row(layer_class: type) -> Callable[..., Any]:
    """A rule for a 1-D layer: `layer_class`, its 2-D twin, on images of one row."""

    def rule(builder: GraphBuilder, layer: Any, x: Any) -> Any:
        if x.shape.rank > 4:
            return builder.copy(layer)(x)  # Sequences in more axes than an image has.
        twin = builder.copy(
            layer, ("activation", "batch_input_shape"), layer_class, **in_one_row(layer)
        )
        y = builder.as_image(twin, padded_causally(builder, layer, x), layer.name)
        return _activate_after(builder, layer, y) if hasattr(layer, "activation") else y

    return rule


def batch_norm(builder: GraphBuilder, layer: Any, x: Any, trainable: bool) -> Any:
    """A BatchNorm over the last axis, on the image of a sequence as its convolution is.

    One over another axis finds it in the last place, and puts it back.
    """
    plain = layers.BatchNormalization  # in a file there are no several devices
    if len(layer.axis) > 1:
        return builder.copy(layer, layer_class=plain, trainable=trainable)(x)
    rank, (axis,) = x.shape.rank, layer.axis
    order = [*(other for other in range(1, rank) if other != axis), axis]
    is_moved = axis != rank - 1
    if is_moved:
        x = builder.call(layers.Permute, f"{layer.name}_move", x, order)
    norm = builder.copy(layer, layer_class=plain, trainable=trainable, axis=-1)
    y = builder.as_image(norm, x, layer.name) if rank == 3 else norm(x)
    if is_moved:
        back = (np.argsort(order) + 1).tolist()
        y = builder.call(layers.Permute, f"{layer.name}_move_back", y, back)
    return y


@rule_for(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    config = {
        **layer.get_config(),
        "depthwise_constraint": layer.depthwise_constraint,
        "pointwise_constraint": layer.pointwise_constraint,
        **(in_one_row(layer) if layer_kind(layer) == "SeparableConv1D" else {}),
    }
    depthwise = layers.DepthwiseConv2D(
        config["kernel_size"],
        strides=config["strides"],
        padding=config["padding"],
        depth_multiplier=config["depth_multiplier"],
        dilation_rate=config["dilation_rate"],
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=config["depthwise_constraint"],
        trainable=layer.trainable,
        name=builder.name(f"{layer.name}_depthwise"),
        dtype="float32",
    )
    pointwise = layers.Conv2D(
        config["filters"],
        1,
        use_bias=config["use_bias"],
        kernel_regularizer=layer.pointwise_regularizer,
        bias_regularizer=layer.bias_regularizer,
        kernel_constraint=config["pointwise_constraint"],
        bias_constraint=layer.bias_constraint,
        trainable=layer.trainable,
        name=builder.name(f"{layer.name}_pointwise"),
        dtype="float32",
    )
    x = padded_causally(builder, layer, x)
    y = builder.as_image(lambda image: pointwise(depthwise(image)), x, layer.name)
    depthwise.set_weights([np.reshape(layer.depthwise_kernel, depthwise.depthwise_kernel.shape)])
    kernel = np.reshape(layer.pointwise_kernel, pointwise.kernel.shape)
    pointwise.set_weights([kernel, *_bias(layer)])
    return _activate_after(builder, layer, y)


@rule_for(layers.Dense)
def _dense(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    """Dense over more than a vector is a 1x1 convolution, whose channels have own scales."""
    if x.shape.rank == 2:
        return _with_activation(builder, layer, x)
    convolution = layers.Conv2D(
        layer.units,
        1,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.kernel_regularizer,
        bias_regularizer=layer.bias_regularizer,
        kernel_constraint=behind_axes(layer.kernel_constraint, 2),
        bias_constraint=layer.bias_constraint,
        trainable=layer.trainable,
        name=builder.name(layer.name),
        dtype="float32",
    )
    y = builder.as_image(convolution, x, layer.name)
    convolution.set_weights([layer.kernel.numpy()[None, None], *_bias(layer)])
    return _activate_after(builder, layer, y)


def _bias(layer: Any) -> list[np.ndarray]:
    return [layer.bias.numpy()] if layer.use_bias else []


@rule_for(layers.ELU)
def _elu(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    return elu(builder, layer.name, x, float(layer.alpha))


@rule_for(layers.ReLU)
def _relu(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    if layer.threshold or layer.negative_slope:
        return builder.copy(layer)(x)
    limit = np.inf if layer.max_value is None else float(layer.max_value)
    return builder.relu(x, layer.name, limit)


def _pairwise(merge: Callable[[Any, Any, str], Any], name: str, inputs: list[Any]) -> Any:
    """Merges two tensors at a time, as the integer kernels do; the last result gets `name`."""
    result, *rest = inputs
    for index, tensor in enumerate(rest):
        last = index == len(rest) - 1
        result = merge(result, tensor, name if last else f"{name}_part")
    return result


def sum_of(builder: GraphBuilder, name: str, inputs: list[Any]) -> Any:
    """Adds tensors up; the result is that of a layer called `name`."""
    return _pairwise(lambda a, b, part: builder.call(layers.Add, part, [a, b]), name, inputs)


@rule_for(layers.Add)
def _add(builder: GraphBuilder, layer: Any, inputs: list[Any]) -> Any:
    return sum_of(builder, layer.name, inputs)


@rule_for(layers.Multiply)
def _multiply(builder: GraphBuilder, layer: Any, inputs: list[Any]) -> Any:
    return _pairwise(builder.multiply, layer.name, inputs)


@rule_for(layers.Average)
def _average(builder: GraphBuilder, layer: Any, inputs: list[Any]) -> Any:
    total = sum_of(builder, f"{layer.name}_sum", inputs)
    return builder.affine(total, 1.0 / len(inputs), 0.0, layer.name)


@rule_for(LayerScale)
def _layer_scale(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    return builder.affine(x, layer.gamma.numpy(), 0.0, layer.name, trainable=layer.trainable)


@rule_for(CustomScaleLayer)
def _scaled_sum(builder: GraphBuilder, layer: Any, inputs: list[Any]) -> Any:
    scaled = builder.affine(inputs[1], layer.scale, 0.0, f"{layer.name}_scale")
    return builder.call(layers.Add, layer.name, [inputs[0], scaled])


@rule_for(layers.Identity, StochasticDepth)
def _nothing(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    del builder, layer
    return x


@rule_for(layers.Rescaling)
def _rescaling(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    return builder.affine(x, layer.scale, layer.offset, layer.name)


@rule_for(layers.Normalization)
def _normalization(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    axes = sorted(axis % x.shape.rank for axis in layer.axis)
    if axes not in ([], [x.shape.rank - 1]):
        mean, variance = (
            np.reshape(value, [x.shape[axis] for axis in axes])
            for value in (layer.mean, layer.variance)
        )
        # A copy that was adapted would compute with what it had before the weights were set.
        return builder.call(
            layers.Normalization, layer.name, x, layer.axis, mean, variance, layer.invert
        )
    mean, variance = np.ravel(layer.mean), np.ravel(layer.variance)
    deviation = np.maximum(np.sqrt(variance), tf_keras.backend.epsilon())
    if layer.invert:
        return builder.affine(x, deviation, mean, layer.name)
    return builder.affine(x, 1.0 / deviation, -mean / deviation, layer.name)


@rule_for(layers.LayerNormalization)
def _layer_normalization(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    rank = x.shape.rank
    if [axis % rank for axis in np.ravel(layer.axis)] != [rank - 1]:
        return builder.copy(layer)(x)
    mean = builder.call(EhapMean, f"{layer.name}_mean", x, [rank - 1])
    centred = builder.call(layers.Subtract, f"{layer.name}_centre", [x, mean])
    square = builder.call(layers.Multiply, f"{layer.name}_square", [centred, centred])
    inverse = builder.inverse_deviation(square, [rank - 1], layer.epsilon, layer.name)
    y = builder.call(layers.Multiply, f"{layer.name}_standard", [centred, inverse])
    return _scaled(builder, layer, y)


@rule_for(layers.GroupNormalization)
def _group_normalization(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    """A scale and a shift of each channel, made of the statistics: two roundings of the tensor."""
    height_width, channels = x.shape[1:-1], x.shape[-1]
    if layer.axis not in (-1, x.shape.rank - 1) or None in height_width:
        return builder.copy(layer)(x)
    groups = channels if layer.groups == -1 else layer.groups
    grouped = (int(np.prod(height_width)), groups, channels // groups)
    y = builder.call(layers.Reshape, f"{layer.name}_group", x, grouped)
    mean = builder.call(EhapMean, f"{layer.name}_mean", y, [1, 3])
    square = builder.operate("squared_difference", f"{layer.name}_square", y, mean)
    inverse = builder.inverse_deviation(square, [1, 3], layer.epsilon, layer.name)
    mean = _of_each_channel(builder, mean, x, f"{layer.name}_mean")
    scale = _of_each_channel(builder, inverse, x, f"{layer.name}_rsqrt")
    if layer.scale:
        gamma = layer.gamma.numpy()
        scale = builder.affine(scale, gamma, 0.0, f"{layer.name}_gamma", **_gamma(layer))
    shift = builder.multiply(mean, scale, f"{layer.name}_shift")
    y = builder.multiply(x, scale, f"{layer.name}_product")
    if not layer.center:
        return builder.call(layers.Subtract, layer.name, [y, shift])
    shift = builder.affine(shift, -1.0, layer.beta.numpy(), f"{layer.name}_beta", **_beta(layer))
    return builder.call(layers.Add, layer.name, [y, shift])


def _of_each_channel(builder: GraphBuilder, y: Any, x: Any, name: str) -> Any:
    """What is one number for each group, (batch, 1, groups, 1), for the channels of `x`."""
    times = x.shape[-1] // y.shape[2]
    if times > 1:
        y = builder.operate("tile", f"{name}_tile", y, multiples=[1, 1, 1, times])
    shape = (*(1 for _ in x.shape[1:-1]), x.shape[-1])
    return builder.call(layers.Reshape, f"{name}_channels", y, shape)


def _gamma(layer: Any) -> dict[str, Any]:
    """How the scale of a norm trains, as arguments of `GraphBuilder.affine`."""
    return {
        "trainable": layer.trainable,
        "depthwise_regularizer": layer.gamma_regularizer,
        # The channels are the second to last axis of the convolution's kernel.
        "depthwise_constraint": behind_axes(layer.gamma_constraint, 2, 1),
    }


def _beta(layer: Any) -> dict[str, Any]:
    """The same of its shift."""
    return {
        "trainable": layer.trainable,
        "bias_regularizer": layer.beta_regularizer,
        "bias_constraint": layer.beta_constraint,
    }


def _scaled(builder: GraphBuilder, layer: Any, y: Any) -> Any:
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    training = (_gamma(layer) if layer.scale else {}) | (_beta(layer) if layer.center else {})
    return builder.affine(y, gamma, beta, layer.name, **training)


@rule_for(layers.RepeatVector)
def _repeat_vector(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    y = builder.call(layers.Reshape, f"{layer.name}_expand", x, (1, x.shape[-1]))
    return builder.operate("tile", layer.name, y, multiples=[1, layer.n, 1])


@rule_for(layers.Resizing)
def _resizing(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    y = None if layer.crop_to_aspect_ratio else layer.interpolation
    size = (layer.height, layer.width)
    y = resize(builder, layer.name, x, size, y) if y in ("bilinear", "nearest") else None
    return builder.copy(layer)(x) if y is None else y


@rule_for(layers.MaxPooling3D)
def _max_pool_3d(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    """The largest values of every plane, then those of the lines through the planes."""
    name, padding = layer.name, layer.padding
    (depth, *plane), (step, *steps) = layer.pool_size, layer.strides
    y = builder.operate("reshape_steps", f"{name}_planes", x, shape=list(x.shape[2:]))
    y = builder.call(layers.MaxPooling2D, f"{name}_in_planes", y, plane, steps, padding)
    size = y.shape[1:]
    lines = [x.shape[1], size[0] * size[1], size[2]]
    y = builder.operate("reshape_steps", f"{name}_lines", y, shape=lines)
    y = builder.call(layers.MaxPooling2D, name, y, (depth, 1), (step, 1), padding)
    return builder.call(layers.Reshape, f"{name}_space", y, (y.shape[1], *size))


@rule_for(layers.UnitNormalization)
def _unit_normalization(builder: GraphBuilder, layer: Any, x: Any) -> Any:
    y = l2_normalize(builder, layer.name, x, layer.axis)
    return builder.copy(layer)(x) if y is None else y


rule_for(layers.AveragePooling1D)(_one_row(layers.AveragePooling2D))
rule_for(layers.Conv1D)(_one_row(layers.Conv2D))
rule_for(layers.Conv1DTranspose)(_one_row(layers.Conv2DTranspose))
rule_for(layers.Cropping1D)(_one_row(layers.Cropping2D))
rule_for(layers.DepthwiseConv1D)(_one_row(layers.DepthwiseConv2D))
rule_for(layers.Dot)(dot)
rule_for(layers.EinsumDense)(einsum_dense)
rule_for(layers.GlobalAveragePooling1D)(_one_row(layers.GlobalAveragePooling2D))
rule_for(layers.GlobalMaxPooling1D)(_one_row(layers.GlobalMaxPooling2D))
rule_for(layers.MaxPooling1D)(_one_row(layers.MaxPooling2D))
rule_for(layers.UpSampling1D)(_one_row(layers.UpSampling2D))
rule_for(layers.ZeroPadding1D)(_one_row(layers.ZeroPadding2D))
rule_for(layers.MultiHeadAttention)(attention)
