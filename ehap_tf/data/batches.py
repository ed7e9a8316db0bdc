"""Streams of batches: the endless reproducible one for training, the plain one for measuring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ehap_tf.data.augmentation import random_crop, random_resized_crop
from ehap_tf.data.image_dataset import ImageDataset, Split
from ehap_tf.data.image_files import ImageFiles
from ehap_tf.data.normalization import normalize

FEWEST_STEPS, SMALLEST_BATCH = 20, 8


def fitting_batch(examples: int, batch_size: int) -> int:
    """A batch size at which an epoch has 20 steps or more, at most `batch_size`.

    With few images, large batches are few steps: the network is not trained, and the statistics of
    its BatchNorm are those of a handful of batches. Batches of under 8 are not made.

    Args:
        examples: of the training split.
        batch_size: that is wanted.
    """
    return max(1, min(batch_size, examples, max(SMALLEST_BATCH, examples // FEWEST_STEPS)))


def steps_per_epoch(dataset: ImageDataset, batch_size: int) -> int:
    """Number of batches in which every image of the training split is seen.

    Raises:
        ValueError: the training split does not fill one batch.
    """
    examples = len(dataset.train)
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"batch_size must be between 1 and the {examples} training images of "
            f"{dataset.name!r}. Received: {batch_size}"
        )
    return -(-examples // batch_size)


def training_batches(
    dataset: ImageDataset, batch_size: int, seed: int, first_epoch: int = 0, epochs: int = 1
) -> tf.data.Dataset:
    """Shuffled, augmented, normalised batches of `epochs` epochs in one continuous stream.

    Every image is seen once in an epoch; the last batch is filled up with the epoch's first ones.
    The order and augmentation of epoch `e` depend on `seed` and `e` alone: a training that starts
    again at epoch `e` sees the very images that it would have seen without the interruption.

    Returns:
        `epochs * steps_per_epoch(dataset, batch_size)` batches of (float32 images, int64 labels).
    """
    filled = steps_per_epoch(dataset, batch_size) * batch_size
    images_at, labels = _reader(dataset.train)
    examples = len(dataset.train)
    root = np.random.SeedSequence(seed).generate_state(2).astype(np.int64)

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        seeds = tf.random.split(tf.random.fold_in(root, epoch), 2)
        order = tf.argsort(tf.random.stateless_uniform([examples], seeds[0]), stable=True)
        order = tf.concat([order, order[: filled - examples]], axis=0)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return batches.enumerate().map(lambda step, at: (tf.random.fold_in(seeds[1], step), at))

    def examples_at(step_seed: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = images_at(at)
        if dataset.augment:
            change = random_resized_crop if dataset.crop else random_crop
            batch = change(batch, step_seed, dataset.flip)
        return normalize(batch, dataset), tf.gather(labels, at)

    stream = tf.data.Dataset.range(first_epoch, first_epoch + epochs).flat_map(epoch_indices)
    # Files take longer to read than arrays, and are many batches at once.
    calls = 2 if isinstance(dataset.train.images, np.ndarray) else tf.data.AUTOTUNE
    return stream.map(examples_at, num_parallel_calls=calls, deterministic=True).prefetch(4)


def _reader(split: Split) -> tuple[Callable[[tf.Tensor], tf.Tensor], tf.Tensor]:
    """What gives the images at some indices, and all labels."""
    images = split.images
    with tf.device("/cpu:0"):
        labels = tf.constant(split.labels, tf.int64)
        if isinstance(images, ImageFiles):
            files, read = tf.constant(list(images.paths), tf.string), images.read_batch
            return lambda at: read(tf.gather(files, at)), labels
        # Captured by reference: the stream copies no images but those of its batches.
        held = tf.constant(images)
    return lambda at: tf.gather(held, at), labels


def evaluation_batches(split: Split, dataset: ImageDataset, batch_size: int) -> tf.data.Dataset:
    """All examples of `split` once, in order, normalised, the last batch possibly smaller."""
    images_at, labels = _reader(split)
    stream = tf.data.Dataset.range(len(split)).batch(batch_size)

    def examples_at(at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return normalize(images_at(at), dataset), tf.gather(labels, at)

    return stream.map(examples_at, num_parallel_calls=2, deterministic=True).prefetch(2)


def sample_arrays(dataset: ImageDataset, examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A seeded random sample of the training split without augmentation, for the Hessian.

    Args:
        dataset: where from.
        examples: how many, at most as many as the training split has.
        seed: which.

    Returns:
        Normalised float32 images, shape (examples, height, width, channels), and int64 labels.

    Raises:
        ValueError: more examples than there are, or fewer than 1.
    """
    if not 1 <= examples <= len(dataset.train):
        raise ValueError(
            f"examples must be between 1 and the {len(dataset.train)} training images of "
            f"{dataset.name!r}. Received: {examples}"
        )
    chosen = np.random.default_rng(seed).choice(len(dataset.train), examples, replace=False)
    sample = dataset.train.take(np.sort(chosen))
    return normalize(sample.images, dataset), sample.labels
