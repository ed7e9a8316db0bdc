from __future__ import annotations

import numpy as np
import tensorflow as tf

from ehap_tf.data import ImageDataset, normalize
from ehap_tf.data.augmentation import CROP_PADDING, random_crop


def test_normalize_is_the_formula_and_agrees_between_numpy_and_tensorflow(dataset: ImageDataset):
    images = dataset.train.images
    expected = (images / 255.0 - np.array(dataset.mean)) / np.array(dataset.std)
    from_numpy = normalize(images, dataset)
    from_tensorflow = normalize(tf.constant(images), dataset).numpy()
    assert from_numpy.dtype == from_tensorflow.dtype == np.float32
    np.testing.assert_allclose(from_numpy, expected, atol=1e-6)
    np.testing.assert_allclose(from_tensorflow, from_numpy, atol=1e-6)


def all_crops(image: np.ndarray, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """The naive oracle: every image that pad, crop and flip can make of `image`."""
    height, width, _ = image.shape
    padded = np.pad(image, [(CROP_PADDING, CROP_PADDING)] * 2 + [(0, 0)])
    crops = {}
    for top in range(2 * CROP_PADDING + 1):
        for left in range(2 * CROP_PADDING + 1):
            crop = padded[top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            if flip:
                crops[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (top, left, True)
    return crops


def test_each_image_becomes_one_of_the_crops_that_padding_allows(dataset: ImageDataset):
    images = dataset.train.images
    cropped = random_crop(tf.constant(images), tf.constant([3, 4]), flip=True).numpy()
    choices = [all_crops(i, flip=True)[c.tobytes()] for i, c in zip(images, cropped, strict=True)]
    tops, lefts, mirrored = zip(*choices, strict=True)
    assert len(set(tops)) > 5
    assert len(set(lefts)) > 5
    assert tops != lefts
    assert 10 < sum(mirrored) < 40


def test_without_flip_nothing_is_mirrored(dataset: ImageDataset):
    images = dataset.train.images
    cropped = random_crop(tf.constant(images), tf.constant([3, 4]), flip=False).numpy()
    for image, crop in zip(images, cropped, strict=True):
        assert crop.tobytes() in all_crops(image, flip=False)


def test_the_seed_decides_and_nothing_else(dataset: ImageDataset):
    images = tf.constant(dataset.train.images)
    tf.random.set_seed(1)
    first = random_crop(images, tf.constant([1, 2]), flip=True)
    tf.random.set_seed(2)
    again = random_crop(images, tf.constant([1, 2]), flip=True)
    other = random_crop(images, tf.constant([1, 3]), flip=True)
    np.testing.assert_array_equal(first, again)
    assert np.any(first.numpy() != other.numpy())
