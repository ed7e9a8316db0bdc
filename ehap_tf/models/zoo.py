"""The built-in networks by name."""

from __future__ import annotations

import tf_keras

from ehap_tf.models.resnet import build_resnet

_RESNET_DEPTHS = (8, 20, 32, 44, 56, 110)

MODEL_NAMES: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in _RESNET_DEPTHS),
    *(f"resnet{depth}a" for depth in _RESNET_DEPTHS),
)


def build_model(
    name: str,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    width: int = 1,
) -> tf_keras.Model:
    """Builds an untrained network that ends in logits.

    Args:
        name: one of `MODEL_NAMES`.
        num_classes: number of logits.
        input_shape: (height, width, channels) of one image.
        seed: fixes the initial weights; neither reads nor sets TensorFlow's global seed.
        width: multiplies the number of channels of every layer.

    Raises:
        ValueError: an unknown name, or a number below 1.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"model must be one of {', '.join(MODEL_NAMES)}. Received: {name!r}")
    for argument, value in (("num_classes", num_classes), ("width", width)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1. Received: {value}")
    depth, padded = int(name.removeprefix("resnet").removesuffix("a")), name.endswith("a")
    return build_resnet(depth, num_classes, input_shape, seed, width, padded, name)
