"""The layers of slim and masked models for Keras 3, registered there under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ehap_tf.channels.scatter import source_channels


@keras.saving.register_keras_serializable(package="ehap_tf")
class ScatterChannels(keras.layers.Layer):
    """Places input channel `i` at output channel `positions[i]`; the other outputs are zero.

    The twin of `ehap_tf.ScatterChannels`.

    Args:
        positions: for each input channel its place in the output, distinct, each in
            [0, `channels`).
        channels: number of output channels.
    """

    def __init__(self, positions: Sequence[int], channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.positions = tuple(int(p) for p in positions)
        self.channels = int(channels)
        self._source = source_channels(self.positions, self.channels)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Pads one zero channel and gathers."""
        padding = [[0, 0]] * (len(inputs.shape) - 1) + [[0, 1]]
        return keras.ops.take(keras.ops.pad(inputs, padding), self._source, axis=-1)

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


@keras.saving.register_keras_serializable(package="ehap_tf")
class ChannelMask(keras.layers.Layer):
    """Sets channels of its input to zero; the twin of `ehap_tf.pruning.ChannelMask`.

    Args:
        mask: for each channel 1 (stays) or 0 (becomes zero).
    """

    def __init__(self, mask: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = tuple(int(bool(m)) for m in mask)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Selects rather than multiplies, so that infinity in a dead channel is zero too."""
        return keras.ops.where(np.asarray(self.mask, bool), inputs, keras.ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "mask": list(self.mask)}
