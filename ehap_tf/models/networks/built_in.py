"""The built-in networks by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tf_keras

from ehap_tf.models.networks.applications import APPLICATIONS, build_application
from ehap_tf.models.networks.preresnet import build_preresnet
from ehap_tf.models.networks.resnet import build_resnet
from ehap_tf.models.networks.vgg import build_vgg16
from ehap_tf.models.networks.wide_resnet import build_wide_resnet

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
    width: float = 1,
) -> tf_keras.Model:
    """Builds an untrained network that ends in logits.

    Args:
        name: one of `MODEL_NAMES`, whose last layer is called "logits", or of `APPLICATIONS`, the
            networks of `tf_keras.applications`.
        num_classes: number of logits.
        input_shape: (height, width, channels) of one image.
        seed: fixes the initial weights (He's, of an application its own); TensorFlow's global
            seed is neither read nor set.
        width: multiplies the number of channels of every layer; of the MobileNets it may be a
            fraction.

    Raises:
        ValueError: an unknown name, a number that is too small, or an image of less than 16 pixels
            a side, or than an application takes.
    """
    if name not in _BUILDERS and name not in APPLICATIONS:
        raise ValueError(
            f"model must be one of {', '.join(MODEL_NAMES)}, or of tf_keras.applications: "
            f"{', '.join(APPLICATIONS)}. Received: {name!r}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1. Received: {num_classes}")
    if width <= 0 or (name in _BUILDERS and width != int(width)):
        kind = "an integer of at least 1" if name in _BUILDERS else "above 0"
        raise ValueError(f"width must be {kind}. Received: {width}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0. Received: {seed}")
    if len(input_shape) != 3 or min(input_shape[:2]) < SMALLEST_SIDE or input_shape[2] < 1:
        raise ValueError(
            f"input_shape must be (height, width, channels) with sides of at least "
            f"{SMALLEST_SIDE} pixels. Received: {input_shape}"
        )
    if name in APPLICATIONS:
        return build_application(name, num_classes, input_shape, seed, width)
    return _BUILDERS[name](
        num_classes=num_classes, input_shape=input_shape, seed=seed, width=int(width), name=name
    )
