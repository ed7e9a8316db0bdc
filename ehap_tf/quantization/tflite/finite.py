"""Weights that are not finite numbers, which no integer file can hold."""

from __future__ import annotations

import tf_keras

from ehap_tf.models import weights_that_are_not_finite
from ehap_tf.quantization.integer_rules.wrappers import unwrapped


def require_finite_weights(model: tf_keras.Model) -> None:
    """Checks every weight of a model: kernels, statistics, activation ranges.

    Args:
        model: float or quantized, built.

    Raises:
        ValueError: one is NaN or infinite.
    """
    for layer, weight, wrong in weights_that_are_not_finite(model):
        raise ValueError(
            f"the weights of layer {unwrapped(layer).name!r} must be finite numbers. Received: "
            f"{weight.name!r} of shape {tuple(weight.shape)} with {wrong} that are NaN or infinite"
        )
