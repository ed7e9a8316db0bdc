"""What function a layer of a graph stands for."""

from __future__ import annotations

import tf_keras


def operator_symbol(layer: tf_keras.layers.Layer) -> str:
    """The TensorFlow name of the function that a layer stands for ("math.add"), else ""."""
    return (getattr(layer, "symbol", None) or "").removeprefix("compat.v1.")
