"""The layers that a canonical graph is built of, with names, float32 and weights taken care of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import ZeroInitializers, is_noise, is_symbolic, layer_from, with_policy
from ehap_tf.models import clone_with_policy
from ehap_tf.models.kinds import function_kind
from ehap_tf.quantization.integer_rules.integer_kernels import ACTIVATION_OUTPUTS
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator, as_json
from ehap_tf.quantization.integer_rules.own_layers import (
    EhapFloatLayer,
    EhapHardSwish,
    EhapMean,
    EhapRsqrt,
    EhapStopGradient,
)
from ehap_tf.quantization.integer_rules.smooth_activations import SMOOTH_ACTIVATIONS

layers = tf_keras.layers

OTHER_POLICIES = frozenset({"bfloat16", "float16", "float64", "mixed_bfloat16", "mixed_float16"})
"""Dtype policies that layers inside a layer may have, and that a copy computes without."""

POINTWISE = frozenset(
    {
        EhapHardSwish,
        ScatterChannels,
        EhapStopGradient,
        layers.ActivityRegularization,
        layers.Add,
        layers.LeakyReLU,
        layers.Maximum,
        layers.Minimum,
        layers.Multiply,
        layers.ReLU,
        layers.Subtract,
    }
)
"""Layers that act alike on every position, wherever the positions lie; see also `_for_images`."""


class GraphBuilder:
    """Makes layers with unique names and calls them on symbolic tensors.

    Remembers which tensors are scaled and clipped versions of which, so that a hard sigmoid or a
    hard swish is recognised in whatever spelling it is written. Remembers the images that sequences
    are computed as, so that what follows on one is computed on the image too: BatchNorm and ReLU
    then stand right behind their convolution. Only what is read of both stays in the model.

    Args:
        taken: names that new layers must not get.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._names = set(taken)
        self._affines: dict[int, tuple[Any, Any, np.ndarray, np.ndarray, bool]] = {}
        self._relus: dict[int, tuple[Any, Any, float]] = {}
        self._products: dict[int, tuple[Any, Any, Any]] = {}
        self._images: dict[int, tuple[Any, Any]] = {}

    def name(self, wanted: str) -> str:
        """A layer name that is not taken: `wanted`, or `wanted` with a number."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    def call(self, layer_class: type, name: str, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes a float32 layer called `name`, if that is free, and calls it on `inputs`."""
        layer = layer_class(*args, name=self.name(name), dtype="float32", **kwargs)
        return self._call_pointwise(layer, inputs) if _is_pointwise(layer) else layer(inputs)

    def operate(self, operator: str, name: str, *args: Any, **options: Any) -> Any:
        """Calls an operator of `INTEGER_OPERATORS`.

        Args:
            operator: its name in the table.
            name: of the layer.
            *args: its tensors and constants, in order.
            **options: its other arguments.
        """
        tensors = [arg for arg in args if is_symbolic(arg)]
        constants = {
            place: np.asarray(arg, np.float32)
            for place, arg in enumerate(args)
            if not is_symbolic(arg)
        }
        layer = EhapOperator(
            operator,
            {key: as_json(value) for key, value in options.items()},
            {str(place): value.shape for place, value in constants.items()},
            name=self.name(name),
            dtype="float32",
        )
        inputs = tensors[0] if len(tensors) == 1 else tensors
        y = self._call_pointwise(layer, inputs) if layer.is_pointwise else layer(inputs)
        layer.set_weights(list(constants.values()))
        return y

    def copy(
        self,
        layer: tf_keras.layers.Layer,
        without: Collection[str] = (),
        layer_class: type[tf_keras.layers.Layer] | None = None,
        **changes: Any,
    ) -> Callable[..., Any]:
        """Returns a function that calls a float32 copy of `layer` with the same weights.

        The layers inside it compute in float32 too.

        Args:
            layer: to be copied.
            without: arguments of its constructor that the copy has the defaults of.
            layer_class: of the copy, if not that of `layer`; its weights may have more axes of
                size 1.
            **changes: arguments of its constructor that the copy has other values of.
        """
        config = {key: value for key, value in layer.get_config().items() if key not in without}
        name = self.name(layer.name)
        config = {**config, **changes, "name": name, "dtype": "float32"}
        config = with_policy(config, OTHER_POLICIES, "float32")
        twin = layer_from(layer, config, layer_class)

        def call(*args: Any, **kwargs: Any) -> Any:
            with ZeroInitializers() as initializers:
                initializers.apply(twin)
                if _is_pointwise(twin) and len(args) == 1 and not kwargs:
                    outputs = self._call_pointwise(twin, args[0])
                else:
                    outputs = twin(*args, **kwargs)
            # The weights of a layer that is the activation come last; a copy may be without it.
            weights = layer.get_weights()[: len(twin.weights)]
            if layer_class is not None:
                weights = [
                    np.reshape(w, v.shape) for w, v in zip(weights, twin.weights, strict=True)
                ]
            twin.set_weights(weights)
            return outputs

        return call

    def in_float(self, layer: tf_keras.layers.Layer) -> Callable[..., Any]:
        """Returns a function that calls a copy of `layer` which stays in float32.

        Args:
            layer: a layer or a nested model.
        """
        if isinstance(layer, tf_keras.Model):
            twin = clone_with_policy(layer, "float32")
        else:
            config = with_policy(
                {**layer.get_config(), "dtype": "float32"}, OTHER_POLICIES, "float32"
            )
            twin = layer_from(layer, config)
        kept = EhapFloatLayer(twin, name=self.name(layer.name), dtype="float32")

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = kept(*args, **kwargs)
            twin.set_weights(layer.get_weights())
            return outputs

        return call

    # -- activation functions -------------------------------------------------------------------

    def activate(self, function: Any, x: Any, name: str) -> Any:
        """Applies an activation function as layers that have an integer kernel.

        Args:
            function: an activation function, of whatever origin.
            x: the symbolic tensor to apply it to.
            name: of the layer that does it.
        """
        kind = function_kind(function)
        if kind == "linear":
            return x
        if kind in ("relu", "relu6"):
            return self.relu(x, name, 6.0 if kind == "relu6" else np.inf)
        if kind == "softmax":
            return self.call(layers.Softmax, name, x)
        if kind in ("swish", "silu"):
            gate = self.call(layers.Activation, f"{name}_sigmoid", x, "sigmoid")
            return self.multiply(x, gate, name)
        if kind == "hard_sigmoid":
            return self.relu(self.affine(x, 0.2, 0.5, f"{name}_affine"), name, 1.0)
        # Keras 3's definitions, as its models bring them into tf_keras.
        if kind == "hard_sigmoid_relu6":
            return self.relu(self.affine(x, 1.0 / 6.0, 0.5, f"{name}_affine"), name, 1.0)
        if kind in ("hard_silu", "hard_swish"):
            return self.call(EhapHardSwish, name, x)
        if kind == "log_softmax":
            return self.operate("log_softmax", name, x)
        if kind in SMOOTH_ACTIVATIONS:
            return SMOOTH_ACTIVATIONS[kind](self, name, x)
        if kind == "leaky_relu":
            return self.call(layers.LeakyReLU, name, x, 0.2)
        # TensorFlow's own sigmoid does not leave its logits for the loss.
        function = "sigmoid" if kind == "sigmoid" else function
        return self.call(layers.Activation, name, x, function)

    def relu(self, x: Any, name: str, limit: float = np.inf) -> Any:
        """Returns min(max(x, 0), limit)."""
        y = self.call(layers.ReLU, name, x, None if np.isinf(limit) else float(limit))
        self._relus[id(y)] = (y, x, limit)
        return y

    def multiply(self, a: Any, b: Any, name: str) -> Any:
        """Returns a * b, as one operator where it is a hard swish."""
        for x, gate in ((a, b), (b, a)):
            if self._is_hard_sigmoid(gate, x):
                return self.call(EhapHardSwish, name, x)
        y = self.call(layers.Multiply, name, [a, b])
        self._products[id(y)] = (y, a, b)
        return y

    def _is_hard_sigmoid(self, gate: Any, x: Any, factor: float = 1.0) -> bool:
        """Whether `factor * gate` is relu6(x + 3) / 6, however it is scaled inside."""
        _, inside, limit = self._relus.get(id(gate), (None, None, 0.0))
        if id(inside) not in self._affines:
            return False
        _, source, scale, shift, _ = self._affines[id(inside)]
        slope, offset = scale * factor, shift * factor
        is_sixth = np.allclose(slope, 1.0 / 6.0) and np.allclose(offset, 0.5)
        return source is x and is_sixth and bool(np.isclose(limit * factor, 1.0))

    # -- products with a kernel -------------------------------------------------------------------

    def dense(
        self,
        x: Any,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        **training: Any,
    ) -> Any:
        """Returns `x @ kernel + bias`, over more than a vector as a 1x1 convolution.

        Args:
            x: (batch, ..., inputs).
            kernel: (inputs, units).
            bias: (units,), or None.
            name: of the layer.
            **training: whether it trains, and its regularizers and constraints.
        """
        units = kernel.shape[-1]
        options = {"use_bias": bias is not None, "name": self.name(name), "dtype": "float32"}
        if x.shape.rank == 2:
            layer = layers.Dense(units, **options, **training)
            y = layer(x)
        else:
            layer = layers.Conv2D(units, 1, **options, **training)
            y = self.as_image(layer, x, name)
            kernel = kernel[None, None]
        layer.set_weights([kernel] if bias is None else [kernel, bias])
        return y

    # -- a scale and a shift of each channel ----------------------------------------------------

    def affine(
        self,
        x: Any,
        scale: Any,
        shift: Any,
        name: str,
        trainable: bool = False,
        **training: Any,
    ) -> Any:
        """Returns `scale * x + shift` by channel, as a 1x1 depthwise convolution.

        One integer operator into which BatchNorm and ReLU fold; its weights are exact in 8 bits
        whatever their values, because every channel has a scale of its own.

        Args:
            x: channels last, of any rank from 2.
            scale: a scalar or one value for each channel.
            shift: likewise.
            name: of the new layer.
            trainable: whether scale and shift are.
            **training: the convolution's regularizers and constraints.
        """
        scale, shift = (np.ravel(np.asarray(value, np.float32)) for value in (scale, shift))
        if scale.size == 1 and scale[0] > 0.0 and not shift.any():
            scaled = self._scaled(x, float(scale[0]), name)
            if scaled is not None:
                return scaled
        channels = x.shape[-1]
        layer = layers.DepthwiseConv2D(
            1, trainable=trainable, name=self.name(name), dtype="float32", **training
        )
        y = self.as_image(layer, x, name)
        layer.set_weights(
            [
                np.broadcast_to(scale, (channels,)).reshape(1, 1, channels, 1),
                np.broadcast_to(shift, (channels,)),
            ]
        )
        if not any(training.values()):
            # These are for the scale and shift as they are, without another factor.
            self._affines[id(y)] = (y, x, scale, shift, trainable)
        return y

    def _scaled(self, x: Any, factor: float, name: str) -> Any:
        """`factor * x` where it can be had inside the operator that makes `x`, else None."""
        _, a, b = self._products.get(id(x), (None, None, None))
        for source, gate in ((a, b), (b, a)):
            if self._is_hard_sigmoid(gate, source, factor):
                return self.call(EhapHardSwish, name, source)
        _, inside, limit = self._relus.get(id(x), (None, None, 0.0))
        if id(inside) not in self._affines:
            return None
        # c min(max(a x + b, 0), limit) = min(max(c a x + c b, 0), c limit)
        _, source, scale, shift, trainable = self._affines[id(inside)]
        y = self.affine(source, scale * factor, shift * factor, f"{name}_affine", trainable)
        return self.relu(y, name, limit * factor)

    def as_image(self, layer: Callable[..., Any], x: Any, name: str) -> Any:
        """Calls a layer for images on a tensor of any rank, reshaped to an image and back.

        Args:
            layer: a 1x1 convolution; for a sequence, which is an image of one row, any layer.
            x: the tensor.
            name: what the names of the reshapes begin with.
        """
        rank = x.shape.rank
        if rank == 4:
            return layer(x)
        if rank == 3:
            y = layer(self._image(x, name))
            return self._sequence(y, name) if y.shape.rank == 4 else y
        image = (1, -1, x.shape[-1]) if rank > 3 else (1, 1, x.shape[-1])
        y = layer(self.call(layers.Reshape, f"{name}_expand", x, image))
        shape = (*x.shape[1:-1], y.shape[-1])
        return self.call(layers.Reshape, f"{name}_flatten", y, shape)

    def _image(self, x: Any, name: str) -> Any:
        """The image of a sequence: the one that it was computed as, or a new one."""
        if id(x) not in self._images:
            image = self.call(layers.Reshape, f"{name}_expand", x, (1, *x.shape[1:]))
            self._images[id(x)] = (x, image)
        return self._images[id(x)][1]

    def _sequence(self, image: Any, name: str) -> Any:
        """The sequence that an image of one row is."""
        x = self.call(layers.Reshape, f"{name}_flatten", image, image.shape[2:])
        self._images[id(x)] = (x, image)
        return x

    def _call_pointwise(self, layer: tf_keras.layers.Layer, inputs: Any) -> Any:
        """Calls a layer on the images of its inputs where all of them are computed as images."""
        if not all(id(x) in self._images for x in tf.nest.flatten(inputs)):
            return layer(inputs)
        layer = _for_images(layer)
        images = tf.nest.map_structure(lambda x: self._images[id(x)][1], inputs)
        return self._sequence(layer(images), layer.name)

    # -- normalization by the input's own statistics ----------------------------------------------

    def inverse_deviation(self, square: Any, axes: Sequence[int], epsilon: float, name: str) -> Any:
        """Returns 1 / sqrt(variance + epsilon) of squared distances from the mean over `axes`."""
        variance = self.call(EhapMean, f"{name}_variance", square, axes)
        variance = self.affine(variance, 1.0, epsilon, f"{name}_epsilon")
        return self.call(EhapRsqrt, f"{name}_rsqrt", variance, epsilon)


def _for_images(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """The layer that does to an image of one row what `layer` does to a sequence."""
    config = layer.get_config()
    if type(layer) is layers.SpatialDropout1D:
        return layers.SpatialDropout2D(data_format="channels_last", **config)
    if config.get("noise_shape"):
        batch, *shape = config["noise_shape"]
        return type(layer).from_config({**config, "noise_shape": (batch, 1, *shape)})
    return layer


def _is_pointwise(layer: tf_keras.layers.Layer) -> bool:
    if type(layer) is layers.Activation:
        return function_kind(layer.activation) in ACTIVATION_OUTPUTS
    if isinstance(layer, EhapOperator):
        return layer.is_pointwise
    if type(layer) in (layers.Concatenate, layers.Softmax):
        return bool(layer.axis == -1)
    return is_noise(layer) or type(layer) in POINTWISE
