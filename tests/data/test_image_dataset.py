from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ehap_tf.data import ImageDataset, Split
from ehap_tf.data.image_dataset import split_validation
from tests.data.conftest import make_split


def test_the_validation_split_is_disjoint_complete_and_fixed_by_its_seed():
    split = make_split(50)
    train, validation = split_validation(split, 0.1, seed=0)
    _, again = split_validation(split, 0.1, seed=0)
    _, other = split_validation(split, 0.1, seed=1)
    parts = [i.tobytes() for i in train.images] + [i.tobytes() for i in validation.images]
    assert len(validation) == 5
    assert sorted(parts) == sorted(i.tobytes() for i in split.images)
    np.testing.assert_array_equal(validation.images, again.images)
    assert np.any(validation.images != other.images)


def test_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 images"):
        split_validation(make_split(1), 0.1, seed=0)


def test_labels_out_of_range_name_the_split(dataset: ImageDataset):
    with pytest.raises(ValueError, match="validation split of 'noise': labels must be in 0 to 9"):
        bad = Split(dataset.validation.images, dataset.validation.labels + 5)
        dataclasses.replace(dataset, validation=bad)


def test_an_empty_split_is_refused(dataset: ImageDataset):
    with pytest.raises(ValueError, match="test split of 'noise' is empty"):
        dataclasses.replace(dataset, test=dataset.test.take(np.arange(0)))


def test_images_must_be_uint8_with_a_label_each():
    with pytest.raises(ValueError, match=r"uint8 .* Received: float64"):
        Split(np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="one label"):
        Split(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64))


def test_a_data_set_is_shown_in_one_line(dataset: ImageDataset):
    height, width, channels = dataset.input_shape
    shape = f"{height}x{width}x{channels}"
    assert repr(dataset) == (
        f"ImageDataset({dataset.name!r}: {len(dataset.train)} training, {len(dataset.validation)} "
        f"validation and {len(dataset.test)} test images of {shape}, {dataset.num_classes} classes)"
    )
    assert repr(dataset.test) == f"Split({len(dataset.test)} images of {shape})"
