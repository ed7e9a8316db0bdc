"""1-D layers as 2-D ones: what their arguments are for images of one row.

Keras computes them so itself; TFLite has the 2-D operators only.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.builder import GraphBuilder

HEIGHTS = {
    "dilation_rate": 1,
    "kernel_size": 1,
    "output_padding": 0,
    "pool_size": 1,
    "size": 1,
    "strides": 1,
}
"""Argument of a 1-D layer -> what its 2-D twin has for the height of one row."""

SQUARE = {
    "Conv1DTranspose": "dilation_rate",
    "DepthwiseConv1D": "strides",
    "SeparableConv1D": "strides",
}
"""Layer class -> the argument that the 2-D operator has alike for both axes; a row stays one."""


def in_one_row(layer: tf_keras.layers.Layer) -> dict[str, Any]:
    """The arguments of a 1-D layer that its 2-D twin has other values of, on images of one row.

    Causal padding is no part of the twin, see `padded_causally`.
    """
    config = layer.get_config()
    changes: dict[str, Any] = {
        name: (height, *np.ravel(config[name]).tolist())
        for name, height in HEIGHTS.items()
        if config.get(name) is not None
    }
    square = SQUARE.get(layer_kind(layer))
    if square:
        changes[square] = (*config[square], *config[square])
    for name in ("cropping", "padding"):
        if isinstance(config.get(name), tuple | list):
            changes[name] = ((0, 0), tuple(config[name]))
    if config.get("padding") == "causal":
        changes["padding"] = "valid"
    for name in ("kernel_constraint", "depthwise_constraint", "pointwise_constraint"):
        if getattr(layer, name, None) is not None:
            changes[name] = behind_axes(getattr(layer, name), 1)
    return changes


def padded_causally(builder: GraphBuilder, layer: tf_keras.layers.Layer, x: Any) -> Any:
    """Returns the sequence `x` with the zeros that causal padding puts before it."""
    if getattr(layer, "padding", None) != "causal":
        return x
    before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    name = f"{layer.name}_causal"

    def pad(image: Any) -> Any:
        return builder.call(tf_keras.layers.ZeroPadding2D, name, image, ((0, 0), (before, 0)))

    return builder.as_image(pad, x, layer.name)


def behind_axes(constraint: Any, more: int, after: int = 0) -> Any:
    """The constraint of a kernel for the same kernel with `more` axes in front, `after` behind."""
    if not hasattr(constraint, "axis"):
        return constraint
    twin = copy.copy(constraint)
    axes = np.ravel(constraint.axis).tolist()
    twin.axis = [axis + more if axis >= 0 else axis - after for axis in axes]
    return twin
