"""Images of one size and number of channels made of images of another."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

RESIZES = ("crop", "stretch")
"""How an image of another shape is brought to size: its middle, or all of it out of shape."""

Shape = tuple[int | None, int | None, int | None]
"""(height, width, channels) that are wanted; None is what the image has."""

_BATCH = 256
_LUMA = ((0.299,), (0.587,), (0.114,))


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
    before = image.shape[-3:]
    final = shape[0] or before[0], shape[1] or before[1], shape[2] or before[2]
    if final == before:
        return image
    if {before[2], final[2]} - {1, 3} and final[2] != before[2]:
        raise ValueError(
            f"Images have 1 or 3 channels, and so must the network's input. Received: {before[2]} "
            f"channels, to be made {final[2]}"
        )
    with tf.device("/cpu:0"):
        return np.asarray(tensor_of_shape(image, final, resize))


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


def tensor_of_shape(image: tf.Tensor, shape: tuple[int, int, int], resize: str) -> tf.Tensor:
    """`image_of_shape` as operators, for an image whose size only the file tells."""
    image = tf.convert_to_tensor(image)
    channels = image.shape[-1]
    if channels != shape[2]:
        image = _with_channels(image, shape[2])
    size = tf.shape(image)[-3:-1]
    wanted = tf.constant(shape[:2])
    scaled = wanted
    if resize == "crop":
        scale = tf.reduce_max(tf.cast(wanted, tf.float64) / tf.cast(size, tf.float64))
        scaled = tf.cast(tf.round(scale * tf.cast(size, tf.float64)), tf.int32)
        scaled = tf.maximum(wanted, scaled)

    def resized() -> tf.Tensor:
        values = tf.image.resize(image, scaled, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)

    image = tf.cond(tf.reduce_all(scaled == size), lambda: image, resized)
    top, left = tf.unstack((scaled - wanted) // 2)
    image = image[..., top : top + shape[0], left : left + shape[1], :]
    return tf.ensure_shape(image, (*image.shape[:-3], *shape))


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    if channels == 3:
        return tf.repeat(image, 3, axis=-1)
    luma = tf.tensordot(tf.cast(image, tf.float32), tf.constant(_LUMA), 1)
    return tf.cast(tf.clip_by_value(tf.round(luma), 0, 255), tf.uint8)
