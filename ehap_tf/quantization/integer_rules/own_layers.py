"""Single TFLite operators that Keras has no layer for, and TFMOT's layer that quantizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

from ehap_tf.graph import register_traits

HALF_WAY = 1e-3
"""Of a step: more than the float error of an average, less than what sets two averages apart."""


class EhapQuantizeLayer(QuantizeLayer):
    """TFMOT's layer, built once, and in float32 whatever the global dtype policy.

    TFMOT's does not note that it is built. Keras builds a layer of a `.keras` file by its saved
    shape, and again when it is called: with twice the variables, which the file does not have.
    """

    built: bool

    def __init__(self, quantizer: Any, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(quantizer, dtype=dtype, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Makes the variables of the quantizer."""
        if not self.built:
            super().build(input_shape)
            self.built = True

    def call(self, inputs: tf.Tensor, training: Any = None, averages: bool = False) -> tf.Tensor:
        """Quantizes.

        Args:
            inputs: real values, or `averages` of what this layer has put on its grid. Those are
                often half-way between two integers, where the file's pool rounds away from integer
                0 and emulated quantization as float errors have it.
            training: whether the range follows the inputs.
            averages: see `inputs`.
        """
        if averages:
            step, zero = self.quantizer.grid(self.quantizer_vars)
            inputs = inputs + HALF_WAY * step * tf.sign(inputs - zero)
        return super().call(inputs, training)


class EhapFloatLayer(tf_keras.layers.Wrapper):
    """A layer that computes in float32 in an otherwise integer file.

    Args:
        layer: any; it is built when it is called.
    """

    def build(self, input_shape: Any) -> None:
        """Nothing to do."""
        del input_shape
        self.built = True

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer."""
        if not self.layer._expects_training_arg:
            kwargs.pop("training", None)
        return self.layer(inputs, *args, **kwargs)


class EhapHardSwish(tf_keras.layers.Layer):
    """x * relu6(x + 3) / 6, written so that the TFLite converter sees its HARD_SWISH."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the function to every element."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


class EhapMean(tf_keras.layers.Layer):
    """The mean over some axes, which stay with size 1.

    Args:
        axes: of the tensor, the batch being axis 0.
    """

    def __init__(self, axes: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes = [int(axis) for axis in axes]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the means."""
        return tf.reduce_mean(inputs, self.axes, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "axes": self.axes}


class EhapRsqrt(tf_keras.layers.Layer):
    """1 / sqrt(x) of values that are not negative, finite also where rounding made a zero of one.

    The integer kernel answers a zero with its largest value; so does the quantizer behind this.

    Args:
        smallest: inputs below count as this.
    """

    def __init__(self, smallest: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.smallest = float(smallest)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the function to every element."""
        return tf.math.rsqrt(tf.maximum(inputs, self.smallest))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "smallest": self.smallest}


class EhapStopGradient(tf_keras.layers.Layer):
    """Hands its input on, and no gradient back: what is before it does not train through it."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the input."""
        return tf.stop_gradient(inputs)


register_traits(EhapStopGradient, training_only="loss")


class EhapSlice(tf_keras.layers.Layer):
    """A part of the tensor: `x[:, starts[0]:stops[0]:steps[0], ...]`.

    Args:
        starts: of every axis but the batch, as `slice.indices` gives them.
        stops: likewise.
        steps: likewise, positive.
    """

    def __init__(
        self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.starts = [int(start) for start in starts]
        self.stops = [int(stop) for stop in stops]
        self.steps = [int(step) for step in steps]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the part."""
        parts = zip(self.starts, self.stops, self.steps, strict=True)
        of_each_axis = (slice(None), *(slice(*part) for part in parts))
        return inputs[of_each_axis]

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {"starts": self.starts, "stops": self.stops, "steps": self.steps}
        return {**super().get_config(), **own}
