"""The built-in networks by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tf_keras

from ehap_tf.models.preresnet import build_preresnet
from ehap_tf.models.resnet import build_resnet
from ehap_tf.models.vgg import build_vgg16
from ehap_tf.models.wide_resnet import build_wide_resnet

_DEPTHS = (8, 20, 32, 44, 56, 110)

_BUILDERS: dict[str, Callable[..., tf_keras.Model]] = {
    **{f"resnet{depth}": functools.partial(build_resnet, depth) for depth in _DEPTHS},
    **{
        f"resnet{depth}a": functools.partial(build_resnet, depth, padded_shortcut=True)
        for depth in _DEPTHS
    },
    "wrn16_4": functools.partial(build_wide_resnet, 16, 4),
    "wrn28_8": functools.partial(build_wide_resnet, 28, 8),
    "wrn28_10": functools.partial(build_wide_resnet, 28, 10),
    "preresnet29": functools.partial(build_preresnet, 29),
    "vgg16": build_vgg16,
}

MODEL_NAMES: tuple[str, ...] = tuple(_BUILDERS)
SMALLEST_SIDE = 16
"""Four halvings (VGG) leave at least one pixel."""


def build_model(
    name: str,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    width: int = 1,
) -> tf_keras.Model:
    """Builds an untrained network that ends in logits, a Dense layer called "logits".

    Args:
        name: one of `MODEL_NAMES`.
        num_classes: number of logits.
        input_shape: (height, width, channels) of one image.
        seed: fixes the initial weights (He's); TensorFlow's global seed is neither read nor set.
        width: multiplies the number of channels of every layer.

    Raises:
        ValueError: an unknown name, a number below 1, or an image of less than 16 pixels a side.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {', '.join(MODEL_NAMES)}. Received: {name!r}")
    for argument, value in (("num_classes", num_classes), ("width", width)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1. Received: {value}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0. Received: {seed}")
    if len(input_shape) != 3 or min(input_shape[:2]) < SMALLEST_SIDE or input_shape[2] < 1:
        raise ValueError(
            f"input_shape must be (height, width, channels) with sides of at least "
            f"{SMALLEST_SIDE} pixels. Received: {input_shape}"
        )
    return _BUILDERS[name](
        num_classes=num_classes, input_shape=input_shape, seed=seed, width=width, name=name
    )
