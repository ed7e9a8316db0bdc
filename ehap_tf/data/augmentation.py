"""What training does to images at random: crops and mirroring."""

from __future__ import annotations

import math

import tensorflow as tf

CROP_PADDING = 4
SMALLEST_AREA = 0.25
WIDEST_RATIO = 4 / 3


def random_crop(images: tf.Tensor, seed: tf.Tensor, flip: bool) -> tf.Tensor:
    """Shifts each image by up to 4 pixels in both directions and mirrors about half of them.

    This is "pad 4, random crop, horizontal flip" of the ResNet and EHAP recipes for a whole batch
    at once: a crop is a choice of rows and columns, and mirroring is the columns read backwards.

    Args:
        images: shape (batch, height, width, channels); padded with 0 (black for uint8).
        seed: int, shape (2,): the result depends on nothing else.
        flip: whether images are mirrored.
    """
    shape = tf.shape(images)
    batch, height, width = shape[0], shape[1], shape[2]
    seeds = tf.random.split(seed, 3)
    top = _offsets(seeds[0], batch)
    left = _offsets(seeds[1], batch)
    rows = top[:, tf.newaxis] + tf.range(height)
    columns = tf.tile(tf.range(width)[tf.newaxis], [batch, 1])
    if flip:
        mirrored = tf.random.stateless_uniform([batch, 1], seeds[2]) < 0.5
        columns = tf.where(mirrored, width - 1 - columns, columns)
    columns = columns + left[:, tf.newaxis]
    sides = [CROP_PADDING, CROP_PADDING]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def random_resized_crop(images: tf.Tensor, seed: tf.Tensor, flip: bool) -> tf.Tensor:
    """Takes a part of each image, brings it to the image's size, and mirrors about half of them.

    The part has a quarter to all of the area, at random, and 3/4 to 4/3 of the image's ratio of
    width to height: the augmentation of photographs (Szegedy et al., arXiv 1409.4842, with a
    smallest area of 0.08).

    Args:
        images: shape (batch, height, width, channels).
        seed: int, shape (2,): the result depends on nothing else.
        flip: whether images are mirrored.

    Returns:
        float32, of the shape of `images`, interpolated linearly.
    """
    batch = tf.shape(images)[0]
    seeds = tf.random.split(seed, 5)

    def drawn(number: int, low: float, high: float) -> tf.Tensor:
        return tf.random.stateless_uniform([batch], seeds[number], low, high)

    area = drawn(0, SMALLEST_AREA, 1.0)
    ratio = tf.exp(drawn(1, -math.log(WIDEST_RATIO), math.log(WIDEST_RATIO)))
    heights = tf.minimum(tf.sqrt(area / ratio), 1.0)
    widths = tf.minimum(tf.sqrt(area * ratio), 1.0)
    top = drawn(2, 0.0, 1.0) * (1.0 - heights)
    left = drawn(3, 0.0, 1.0) * (1.0 - widths)
    right = left + widths
    if flip:
        mirrored = drawn(4, 0.0, 1.0) < 0.5
        left, right = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    boxes = tf.stack([top, left, top + heights, right], axis=1)
    size = images.shape[1:3]
    cropped = tf.image.crop_and_resize(images, boxes, tf.range(batch), size)
    return tf.ensure_shape(cropped, images.shape)


def _offsets(seed: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform([batch], seed, 0, 2 * CROP_PADDING + 1, tf.int32)
