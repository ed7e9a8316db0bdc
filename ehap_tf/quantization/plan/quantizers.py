"""The two quantizers: symmetric for weights, asymmetric for activations.

Both emulate integers, x -> scale * (clip(round(x / scale) + zero_point) - zero_point), with
the straight-through gradient: 1 inside the range, 0 outside.

Activations of 16 bits are symmetric, as TFLite's kernels for them are. Their range is told as that
of the 8-bit integers that the converter writes in their place, see `sixteen_bit_step`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization.keras import quantizers

MOVING_AVERAGE_DECAY = 0.99
CALIBRATED_BATCHES = 100.0
"""That a calibrated range counts as in the moving average: it goes on at its final decay."""
SMALLEST_RANGE = 1e-4
"""Of an activation: a tensor that is always zero still needs a scale that is not."""
SMALLEST_LIMIT = 1e-20
"""Of weights: float32 has no reciprocal of a scale near 1e-38, nor of its product with others."""


class EqualByArguments:
    """Something that is equal to what was made with the same arguments."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__


class _Stateless(EqualByArguments, quantizers.Quantizer):
    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        """Makes no variables."""
        del tensor_shape, name, layer
        return {}


class EhapWeightQuantizer(_Stateless):
    """Symmetric, narrow-range quantization of a weight: integers in [-(2^(b-1) - 1), 2^(b-1) - 1].

    The scale is max|w| / (2^(b-1) - 1), of the current weights at every call: there is no state
    that could lag behind the optimizer's last step.

    Args:
        bits: 2 to 8.
        grouping: what shares a scale: "channel" (the last axis; convolutions and Dense),
            "depthwise" (the last two axes (channels, multiplier), a depthwise kernel's real
            channels), "transposed" (the last but one, the outputs of a Conv2DTranspose) or "tensor"
            (one scale).
    """

    def __init__(self, bits: int = 8, grouping: str = "channel") -> None:
        if grouping not in GROUPINGS:
            raise ValueError(f"grouping must be one of {GROUPINGS}. Received: {grouping!r}")
        self.bits = int(bits)
        self.grouping = grouping

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` with every value at the nearest multiple of its scale."""
        del training, weights, kwargs
        values = to_channels_last(inputs, self.grouping)
        quantized = fake_quantize_symmetric(values, weight_limits(values, self.grouping), self.bits)
        return from_channels_last(quantized, self.grouping, inputs.shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"bits": self.bits, "grouping": self.grouping}


def largest_integer(bits: int) -> int:
    """Of a weight; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


GROUPINGS = ("channel", "depthwise", "transposed", "tensor")


def to_channels_last(kernel: tf.Tensor, grouping: str) -> tf.Tensor:
    """Brings everything that shares a scale under one index of the last axis."""
    if grouping == "depthwise":
        height, width, channels, multiplier = kernel.shape
        return tf.reshape(kernel, (height, width, 1, channels * multiplier))
    return tf.einsum("hwoi->hwio", kernel) if grouping == "transposed" else kernel


def from_channels_last(values: tf.Tensor, grouping: str, shape: Any) -> tf.Tensor:
    """Undoes `to_channels_last`."""
    if grouping == "depthwise":
        return tf.reshape(values, shape)
    return tf.einsum("hwio->hwoi", values) if grouping == "transposed" else values


def weight_limits(values: tf.Tensor, grouping: str) -> tf.Tensor:
    """The largest magnitude of each scale group: a vector, or a scalar for "tensor".

    A group of zeros, or all but zeros, gets the limit 1 (any would do; a scale near zero would
    not). The others are a millionth larger than the largest weight, because rounding inside the
    fake-quantization operator would otherwise leave that weight just outside the range, without a
    gradient.
    """
    axes = None if grouping == "tensor" else list(range(len(values.shape) - 1))
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(values), axis=axes))
    return tf.where(largest > SMALLEST_LIMIT, largest * (1.0 + 1e-6), tf.ones_like(largest))


def fake_quantize_symmetric(values: tf.Tensor, limits: tf.Tensor, bits: int) -> tf.Tensor:
    """Fake-quantizes to [-limits, limits], the zero point being exactly 0.

    Args:
        values: weights, channels last.
        limits: one for each channel, or a scalar.
        bits: integers are in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
    """
    if limits.shape.rank:
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            values, -limits, limits, num_bits=bits, narrow_range=True
        )
    return tf.quantization.fake_quant_with_min_max_vars(
        values, -limits, limits, num_bits=bits, narrow_range=True
    )


def sixteen_bit_step(low: Any, high: Any) -> Any:
    """The step of the symmetric 16-bit integers that stand for a range of 8-bit ones.

    They hold its farther end, so that a step of 8 bits is 256 of theirs where the zero point is 0,
    and 128 where it is -128, as of the outputs of a softmax: both are what TFLite's kernels
    prescribe or take.

    Args:
        low: end of the range of asymmetric 8-bit integers, 0 or less.
        high: the other end.
    """
    step = (high - low) / 255.0
    return finer_step(step, tf.round(-low / step) - 128.0)


def finer_step(step: Any, zero_point: Any) -> Any:
    """The same by the step and the zero point of the 8-bit integers."""
    return step * (128.0 + abs(zero_point)) / 32768.0


def fake_quantize_activation(values: tf.Tensor, low: Any, high: Any, bits: int) -> tf.Tensor:
    """Emulates the integers of an activation.

    Args:
        values: real ones.
        low: end of the range of 8-bit integers; of 16 bits see `sixteen_bit_step`.
        high: the other end.
        bits: up to 8, or 16.
    """
    if bits <= 8:
        return tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=bits)
    # TensorFlow's operator counts its steps from the lower end, where float32 has few digits left.
    step = sixteen_bit_step(low, high)
    inside = tf.clip_by_value(values, -32768.0 * step, 32767.0 * step)
    return inside + tf.stop_gradient(tf.round(inside / step) * step - inside)


def activation_grid(low: Any, high: Any, bits: int) -> tuple[Any, Any]:
    """A step of an activation's integers, and the real value of integer 0; see above."""
    if bits > 8:
        return sixteen_bit_step(low, high), 0.0
    step = (high - low) / 255.0
    # The middle of -128 to 127.
    return step, (128.0 - tf.round(-low / step)) * step


class _OfActivations(EqualByArguments, quantizers.Quantizer):
    """A quantizer of an activation: `bits`, and `limits` of its variables."""

    bits: int

    def limits(self, weights: dict[str, Any]) -> tuple[Any, Any]:
        """The range of 8-bit integers."""
        raise NotImplementedError

    def grid(self, weights: dict[str, Any]) -> tuple[Any, Any]:
        """A step of the integers, and the real value of integer 0."""
        return activation_grid(*self.limits(weights), self.bits)


class EhapActivationQuantizer(_OfActivations):
    """Asymmetric quantization of an activation to the full range of `bits`-bit integers.

    With 16 bits symmetric: the integers end at the larger of the two magnitudes of the range.

    `calibrate` sets the range. In training it becomes a moving average of the batches' smallest and
    largest values, both stretched to contain 0, with a decay of 0.99. Without a calibration the
    average is warm-started: after n batches the decay is min(0.99, n / (n + 1)), so that the first
    batch sets the range and the first hundred are plainly averaged.

    Args:
        bits: 2 to 8, or 16.
        percentile: of the values (in training, of a batch) that the range holds, 50 to 100. Below
            100, as many of the largest as of the smallest values are clipped.
    """

    def __init__(self, bits: int = 8, percentile: float = 100.0) -> None:
        self.bits = int(bits)
        self.percentile = float(percentile)

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        """Makes the range and the number of batches it has seen.

        Until the first batch the range is [-6, 6], TFMOT's.
        """
        del tensor_shape

        def variable(suffix: str, value: float) -> tf.Variable:
            return layer.add_weight(
                name + suffix,
                initializer=tf_keras.initializers.Constant(value),
                trainable=False,
                aggregation=tf.VariableAggregation.MEAN,
            )

        return {
            "min_var": variable("_min", -6.0),
            "max_var": variable("_max", 6.0),
            "batches": variable("_batches", 0.0),
        }

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        """Fake-quantizes; while training, the range moves towards this batch's first."""
        del kwargs
        low, high = weights["min_var"], weights["max_var"]
        if training:
            batches = weights["batches"]
            decay = tf.minimum(MOVING_AVERAGE_DECAY, batches / (batches + 1.0))
            batch_low, batch_high = activation_range(inputs, self.percentile)
            low = low.assign(decay * low + (1.0 - decay) * batch_low)
            high = high.assign(decay * high + (1.0 - decay) * batch_high)
            batches.assign_add(1.0)
        return fake_quantize_activation(inputs, *self._limits(low, high), self.bits)

    def limits(self, weights: dict[str, Any]) -> tuple[Any, Any]:
        """The range, as it is now; of 16 bits that of the 8-bit integers in their place."""
        return self._limits(weights["min_var"], weights["max_var"])

    def _limits(self, low: Any, high: Any) -> tuple[Any, Any]:
        if self.bits <= 8:
            return low, high
        step = 256.0 / 32767.0 * tf.maximum(-low, high)
        return -128.0 * step, 127.0 * step

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"bits": self.bits, "percentile": self.percentile}


def activation_range(values: tf.Tensor, percentile: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The range of a batch: it contains 0 and is at least `SMALLEST_RANGE` wide."""
    flat = tf.reshape(tf.stop_gradient(values), [-1])
    if percentile >= 100.0:
        low, high = tf.reduce_min(flat), tf.reduce_max(flat)
    else:
        share = (1.0 - percentile / 100.0) / 2.0  # At each end.
        clipped = tf.cast(tf.cast(tf.size(flat), tf.float32) * share, tf.int32)
        low = -tf.math.top_k(-flat, clipped + 1).values[-1]
        high = tf.math.top_k(flat, clipped + 1).values[-1]
    return range_with_zero(low, high)


def range_with_zero(low: Any, high: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The range stretched to contain 0 and to be at least `SMALLEST_RANGE` wide."""
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    return low, tf.maximum(high, low + SMALLEST_RANGE)


class EhapFixedQuantizer(_Stateless, _OfActivations):
    """Asymmetric quantization to a range that the integer kernel prescribes.

    TFLite's softmax and sigmoid write multiples of 1/256 from 0, its tanh multiples of 1/128
    around 0, whatever was observed. Keras takes cross-entropies from the logits that its softmax
    and sigmoid leave on their outputs; they stay there, because the loss of a probability that was
    rounded to 0 has no gradient.

    Args:
        low: end of the range of 8-bit integers.
        high: the other end.
        bits: 8, or 16: multiples of 1/32768 then.
    """

    def __init__(self, low: float, high: float, bits: int = 8) -> None:
        self.low = float(low)
        self.high = float(high)
        self.bits = int(bits)

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        """Fake-quantizes to the range."""
        del training, weights, kwargs
        outputs = fake_quantize_activation(inputs, self.low, self.high, self.bits)
        if hasattr(inputs, "_keras_logits"):
            outputs._keras_logits = inputs._keras_logits
        return outputs

    def limits(self, weights: dict[str, Any]) -> tuple[Any, Any]:
        """The range."""
        del weights
        return self.low, self.high

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"low": self.low, "high": self.high, "bits": self.bits}
