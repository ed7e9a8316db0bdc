"""Any functional model as one flat graph of the layers that quantization knows.

Nested models are inlined, a layer that is called more than once gets a copy for each call (in the
file each call is an operator with scales of its own), activation functions become layers, and
composite layers their parts. Weights are copied; everything computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.quantization.graph import rebuild, walk
from ehap_tf.quantization.operators import rewrite_operator

layers = tf_keras.layers


def canonical_model(model: tf_keras.Model) -> tf_keras.Model:
    """Returns a flat float32 twin of `model`, with weights of its own.

    Outputs agree with those of `model` to rounding. Layer names are kept; parts of a composite
    layer get its name and a suffix.

    Raises:
        TypeError: `model` is not Functional or Sequential.
    """
    if not isinstance(model, tf_keras.Model) or not getattr(model, "_is_graph_network", False):
        raise TypeError(
            "model must be a built Functional or Sequential tf_keras model; rebuild a subclassed "
            f"model with tf_keras.Model(inputs, outputs). Received: {type(model).__name__}"
        )
    return rebuild(model, Canonicalizer())


class Canonicalizer:
    """The visitor of `canonical_model`: `RULES` holds one method for each layer class."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def reserve(self, names: Iterable[str]) -> None:
        """Keeps `names` from being given to new layers."""
        self._names.update(names)

    def __call__(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what a call of `layer` becomes."""
        if isinstance(layer, tf_keras.Model):
            return self._inline(layer, args)
        kind = type(layer).__name__
        if kind == "TFOpLambda":
            outputs = rewrite_operator(self, layer, args, kwargs)
            if outputs is not None:
                return outputs
        if kind in RULES:
            return RULES[kind](self, layer, *args)
        if "training" in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        return self.copy(layer)(*args, **kwargs)

    def name(self, wanted: str) -> str:
        """A layer name that is not taken: `wanted`, or `wanted` with a number."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def copy(self, layer: tf_keras.layers.Layer, **changes: Any) -> Callable[..., Any]:
        """Returns a function that calls a float32 copy of `layer` with the same weights."""
        config = {**layer.get_config(), "dtype": "float32", **changes}
        twin = type(layer).from_config({**config, "name": self.name(config["name"])})

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = twin(*args, **kwargs)
            twin.set_weights(layer.get_weights())
            return outputs

        return call

    def _inline(self, model: tf_keras.Model, args: tuple[Any, ...]) -> Any:
        outputs = walk(model, tf.nest.flatten(args), self)
        structure = getattr(model, "_nested_outputs", None)
        return outputs[0] if structure is None else tf.nest.pack_sequence_as(structure, outputs)

    # -- layers that carry an activation function ----------------------------------------------

    def _with_activation(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        x = self.copy(layer, activation="linear")(x)
        return self.activate(layer.activation, x, layer.name)

    def _separable(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        config = layer.get_config()
        depthwise = layers.DepthwiseConv2D(
            config["kernel_size"],
            strides=config["strides"],
            padding=config["padding"],
            depth_multiplier=config["depth_multiplier"],
            data_format=config["data_format"],
            dilation_rate=config["dilation_rate"],
            use_bias=False,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            trainable=layer.trainable,
            name=self.name(f"{layer.name}_depthwise"),
            dtype="float32",
        )
        pointwise = layers.Conv2D(
            config["filters"],
            1,
            data_format=config["data_format"],
            use_bias=config["use_bias"],
            kernel_regularizer=layer.pointwise_regularizer,
            bias_regularizer=layer.bias_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
            name=self.name(f"{layer.name}_pointwise"),
            dtype="float32",
        )
        x = pointwise(depthwise(x))
        weights = layer.get_weights()
        depthwise.set_weights(weights[:1])
        pointwise.set_weights(weights[1:])
        return self.activate(layer.activation, x, layer.name)

    def _dense(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        """Dense over more than a vector is a 1x1 convolution, whose channels have own scales."""
        if x.shape.rank == 2:
            return self._with_activation(layer, x)
        config = layer.get_config()
        convolution = layers.Conv2D(
            config["units"],
            1,
            use_bias=config["use_bias"],
            kernel_regularizer=layer.kernel_regularizer,
            bias_regularizer=layer.bias_regularizer,
            trainable=layer.trainable,
            name=self.name(layer.name),
            dtype="float32",
        )
        y = self.as_image(convolution, x, layer.name)
        kernel, *bias = layer.get_weights()
        convolution.set_weights([kernel[None, None], *bias])
        return self.activate(layer.activation, y, layer.name)

    def _activation(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        return self.activate(layer.activation, x, layer.name, own_layer=True)

    def activate(self, function: Any, x: Any, name: str, own_layer: bool = False) -> Any:
        """Applies an activation function as layers that have an integer kernel.

        Args:
            function: a Keras activation function.
            x: the symbolic tensor to apply it to.
            name: of the layer it comes from.
            own_layer: the function was a layer already, whose name goes to its replacement.
        """
        kind = getattr(function, "__name__", type(function).__name__)
        full_name = self.name(name if own_layer else f"{name}_{kind}") if kind != "linear" else ""
        options = {"name": full_name, "dtype": "float32"}
        if kind == "linear":
            return x
        if kind == "relu":
            return layers.ReLU(**options)(x)
        if kind == "relu6":
            return layers.ReLU(6.0, **options)(x)
        if kind == "softmax":
            return layers.Softmax(**options)(x)
        if kind in ("swish", "silu"):
            gate = layers.Activation(
                "sigmoid", name=self.name(f"{full_name}_sigmoid"), dtype="float32"
            )(x)
            return layers.Multiply(**options)([x, gate])
        if kind == "hard_sigmoid":
            x = self.affine(x, np.float32(0.2), np.float32(0.5), f"{full_name}_affine")
            return layers.ReLU(1.0, **options)(x)
        return layers.Activation(function, **options)(x)

    # -- a scale and a shift of each channel: a 1x1 depthwise convolution ----------------------

    def affine(self, x: Any, scale: Any, shift: Any, name: str) -> Any:
        """Returns `scale * x + shift` by channel, as a depthwise convolution that is not trained.

        One integer operator into which BatchNorm and ReLU fold; its weights are exact in 8 bits
        whatever their values, because every channel has a scale of its own.

        Args:
            x: (batch, height, width, channels), or (batch, channels).
            scale: a scalar or one value for each channel.
            shift: likewise.
            name: of the new layer.
        """
        channels = x.shape[-1]
        layer = layers.DepthwiseConv2D(
            1, use_bias=True, trainable=False, name=self.name(name), dtype="float32"
        )
        y = self.as_image(layer, x, name)
        layer.set_weights(
            [
                np.broadcast_to(scale, (channels,)).reshape(1, 1, channels, 1).astype(np.float32),
                np.broadcast_to(shift, (channels,)).astype(np.float32),
            ]
        )
        return y

    def as_image(self, layer: Callable[..., Any], x: Any, name: str) -> Any:
        """Calls a 1x1 convolution on a tensor of any rank, reshaped to an image and back."""
        if x.shape.rank == 4:
            return layer(x)
        image_shape = (1, -1, x.shape[-1]) if x.shape.rank > 2 else (1, 1, x.shape[-1])
        expand = layers.Reshape(image_shape, name=self.name(f"{name}_expand"), dtype="float32")
        y = layer(expand(x))
        shape = (*x.shape[1:-1], y.shape[-1])
        return layers.Reshape(shape, name=self.name(f"{name}_flatten"), dtype="float32")(y)

    def _average(self, layer: tf_keras.layers.Layer, inputs: list[Any]) -> Any:
        total = layers.Add(name=self.name(f"{layer.name}_sum"), dtype="float32")(inputs)
        return self.affine(total, 1.0 / len(inputs), 0.0, layer.name)

    def _layer_scale(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        return self.affine(x, layer.gamma.numpy(), 0.0, layer.name)

    def _scaled_sum(self, layer: tf_keras.layers.Layer, inputs: list[Any]) -> Any:
        scaled = self.affine(inputs[1], layer.scale, 0.0, f"{layer.name}_scale")
        return layers.Add(name=self.name(layer.name), dtype="float32")([inputs[0], scaled])

    def _nothing(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        return x

    def _rescaling(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        return self.affine(x, np.asarray(layer.scale), np.asarray(layer.offset), layer.name)

    def _normalization(self, layer: tf_keras.layers.Layer, x: Any) -> Any:
        mean, variance = np.ravel(layer.mean), np.ravel(layer.variance)
        deviation = np.maximum(np.sqrt(variance), tf_keras.backend.epsilon())
        if layer.invert:
            return self.affine(x, deviation, mean, layer.name)
        return self.affine(x, 1.0 / deviation, -mean / deviation, layer.name)


RULES: dict[str, Callable[..., Any]] = {
    "Activation": Canonicalizer._activation,
    "Average": Canonicalizer._average,
    "Conv2D": Canonicalizer._with_activation,
    "Conv2DTranspose": Canonicalizer._with_activation,
    "CustomScaleLayer": Canonicalizer._scaled_sum,
    "Dense": Canonicalizer._dense,
    "DepthwiseConv2D": Canonicalizer._with_activation,
    "LayerScale": Canonicalizer._layer_scale,
    "Normalization": Canonicalizer._normalization,
    "Rescaling": Canonicalizer._rescaling,
    "SeparableConv2D": Canonicalizer._separable,
    "StochasticDepth": Canonicalizer._nothing,
}
"""Layer class -> its rule; the Inception and ConvNeXt layers of `applications` among them."""
