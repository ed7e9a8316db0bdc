from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import ImageDataset, normalize
from ehap_tf.data.augmentation import (
    CROP_PADDING,
    SMALLEST_AREA,
    WIDEST_RATIO,
    random_crop,
    random_resized_crop,
)


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


def places(size=(40, 60), count=200) -> np.ndarray:
    """Images whose channels are the row and the column of each pixel, and 1."""
    rows, columns = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij")
    image = np.stack([rows, columns, np.ones(size, np.float32)], axis=-1)
    return np.repeat(image[None], count, axis=0)


@pytest.mark.parametrize("flip", [False, True])
def test_a_resized_crop_is_a_part_of_the_image_of_the_promised_area_and_ratio(flip):
    images = places()
    found = random_resized_crop(tf.constant(images), tf.constant([1, 2]), flip).numpy()
    assert found.shape == images.shape and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 2], 1, atol=1e-6)  # Nothing comes from outside.
    tall = found[:, -1, 0, 0] - found[:, 0, 0, 0]
    wide = found[:, 0, -1, 1] - found[:, 0, 0, 1]
    assert (tall > 0).all()
    assert ((wide < 0).mean() > 0.4) == flip
    heights, widths = tall / 39, np.abs(wide) / 59
    area, ratio = heights * widths, widths / heights
    assert area.min() >= SMALLEST_AREA - 1e-3 and area.min() < 0.3 and area.max() > 0.9
    whole = (heights < 0.999) & (widths < 0.999)
    assert ratio[whole].max() <= WIDEST_RATIO + 1e-3 and ratio[whole].min() >= 0.75 - 1e-3
    # Rows stay rows, evenly spaced.
    np.testing.assert_allclose(np.diff(found[..., 0], axis=1).std(), tall.std() / 39, atol=0.01)


def test_resized_crops_hang_on_the_seed_alone():
    images = tf.constant(places(count=8))
    one, same, other = (random_resized_crop(images, tf.constant([1, n]), True) for n in (2, 2, 3))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
