"""Weights that are not finite numbers, which no integer file can hold."""

from __future__ import annotations

import numpy as np
import tf_keras

from ehap_tf.quantization.wrappers import unwrapped


def require_finite_weights(model: tf_keras.Model) -> None:
    """Checks every weight of a model: kernels, statistics, activation ranges.

    Args:
        model: float or quantized, built.

    Raises:
        ValueError: one is NaN or infinite.
    """
    for layer in model._flatten_layers(include_self=False, recursive=True):
        for weight in layer._trainable_weights + layer._non_trainable_weights:
            if not weight.dtype.is_floating:
                continue
            values = weight.numpy()
            wrong = np.count_nonzero(~np.isfinite(values))
            if wrong:
                name = unwrapped(layer).name
                raise ValueError(
                    f"the weights of layer {name!r} must be finite numbers. Received: "
                    f"{weight.name!r} of shape {tuple(values.shape)} with {wrong} that are NaN or "
                    "infinite"
                )
