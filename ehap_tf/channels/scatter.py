"""The layer that puts the channels of a narrow branch in their places in a wider sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import register_traits


def source_channels(positions: tuple[int, ...], channels: int) -> np.ndarray:
    """For each output channel the input channel that it reads; past the end is the padding.

    Raises:
        ValueError: positions repeat or lie outside [0, channels).
    """
    if len(set(positions)) != len(positions) or not all(0 <= p < channels for p in positions):
        raise ValueError(
            f"positions must be distinct and in [0, {channels}). Received: {positions}"
        )
    source = np.full(channels, len(positions), np.int32)
    source[list(positions)] = np.arange(len(positions), dtype=np.int32)
    return source


@tf_keras.utils.register_keras_serializable(package="ehap_tf")
class ScatterChannels(tf_keras.layers.Layer):
    """Places input channel `i` at output channel `positions[i]`; the other outputs are zero.

    Computed as one pad with a zero channel and one gather, which converts to TFLite. Where a CPU
    trains, as one product with the matrix that holds a one in each place: the same values, bit for
    bit, several times as fast there as a gather of single numbers and its gradient. A GPU gathers,
    as its products may round float32. The layer has no weights.

    Args:
        positions: for each input channel its place in the output, distinct, each in
            [0, `channels`); need not be sorted, so a permutation is a case of it.
        channels: number of output channels.

    Input shape: (batch, ..., len(positions)). Output shape: (batch, ..., channels).

    Raises:
        ValueError: positions repeat or lie outside [0, channels), or the input's last axis is not
            len(positions).
    """

    def __init__(self, positions: Sequence[int], channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.positions = tuple(int(p) for p in positions)
        self.channels = int(channels)
        self._source = source_channels(self.positions, self.channels)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the number of input channels."""
        if input_shape[-1] != len(self.positions):
            raise ValueError(
                f"ScatterChannels {self.name!r} expects {len(self.positions)} input channels. "
                f"Received: an input of shape {tuple(input_shape)}"
            )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """Pads one zero channel and gathers, or multiplies by the matrix of the places."""
        if training is True and not tf.config.list_physical_devices("GPU"):
            positions = tf.constant(self.positions, tf.int32)
            return tf.tensordot(inputs, tf.one_hot(positions, self.channels, dtype=inputs.dtype), 1)
        padding = [[0, 0]] * (inputs.shape.rank - 1) + [[0, 1]]
        return tf.gather(tf.pad(inputs, padding), self._source, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The input's shape with `channels` as last axis."""
        return (*tuple(input_shape)[:-1], self.channels)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain values."""
        return {
            **super().get_config(),
            "positions": list(self.positions),
            "channels": self.channels,
        }


register_traits(ScatterChannels)
