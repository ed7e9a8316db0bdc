"""What training does to images at random: crops and mirroring."""

from __future__ import annotations

import tensorflow as tf

CROP_PADDING = 4


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


def _offsets(seed: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform([batch], seed, 0, 2 * CROP_PADDING + 1, tf.int32)
