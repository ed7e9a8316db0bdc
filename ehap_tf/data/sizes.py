"""Images of one size and number of channels made of images of another."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

RESIZES = ("crop", "stretch")
"""How an image of another shape is brought to size: its middle, or all of it out of shape."""

Shape = tuple[int | None, int | None, int | None]
"""(height, width, channels) that are wanted; None is what the image has."""

_BATCH = 256


def image_of_shape(image: np.ndarray, shape: Shape, resize: str = "crop") -> np.ndarray:
    """One image, or a batch of images of one size, in another shape.

    Args:
        image: uint8, shape (..., height, width, channels) of 1 or 3 channels.
        shape: what is wanted. Of a single channel three equal ones are made; of three one by the
            luma of ITU-R BT.601, 0.299 red + 0.587 green + 0.114 blue.
        resize: "crop" scales the image until it covers the size, and cuts what juts out on both
            sides alike; "stretch" scales each direction by itself.

    Returns:
        uint8, of the wanted shape; the same array where it has it already.

    Raises:
        ValueError: another number of channels than 1 or 3, or an unknown `resize`.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}. Received: {resize!r}")
    height, width, channels = image.shape[-3:]
    wanted = shape[0] or height, shape[1] or width
    if shape[2] not in (None, channels):
        image = _with_channels(image, shape[2])
    if wanted == (height, width):
        return image
    size = wanted
    if resize == "crop":
        scale = max(wanted[0] / height, wanted[1] / width)
        size = max(wanted[0], round(scale * height)), max(wanted[1], round(scale * width))
    resized = _resized(image, size)
    top, left = (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2
    return resized[..., top : top + wanted[0], left : left + wanted[1], :]


def images_of_shape(images: np.ndarray, shape: Shape, resize: str = "crop") -> np.ndarray:
    """`image_of_shape` of many images of one size, some at a time."""
    height, width, channels = images.shape[1:]
    final = shape[0] or height, shape[1] or width, shape[2] or channels
    if final == (height, width, channels):
        return images
    found = np.empty((len(images), *final), np.uint8)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        found[part] = image_of_shape(images[part], shape, resize)
    return found


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == image.shape[-3:-1]:
        return image
    with tf.device("/cpu:0"):
        resized = tf.image.resize(image, size, antialias=True).numpy()
    return np.clip(np.round(resized), 0, 255).astype(np.uint8)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    before = image.shape[-1]
    if (before, channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    if (before, channels) == (3, 1):
        luma = image.astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)
        return np.clip(np.round(luma), 0, 255).astype(np.uint8)
    raise ValueError(
        f"Images have 1 or 3 channels, and so must the network's input. Received: {before} "
        f"channels, to be made {channels}"
    )
