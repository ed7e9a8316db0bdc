"""A set that is read from its files is the set that lies in memory."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import (
    ImageFiles,
    evaluation_batches,
    normalize,
    sample_arrays,
    training_batches,
)
from ehap_tf.data.folder import load_folder

SHAPE = (20, 24, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of images of several sizes and kinds, one of them grey."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, count in (("cat", 23), ("dog", 30)):
        (root / name).mkdir()
        for number in range(count):
            side = int(rng.integers(15, 40))
            image = rng.integers(0, 256, (side, 30, 1 if number == 3 else 3)).astype(np.uint8)
            image = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
            kind, encode = ("png", tf.io.encode_png) if number % 2 else ("jpg", tf.io.encode_jpeg)
            (root / name / f"{number:02d}.{kind}").write_bytes(encode(image).numpy())
    return root


@pytest.fixture(params=[("crop", 3), ("stretch", 1)], ids=["crop", "stretch, grey"])
def both(request, folder):
    resize, channels = request.param
    shape = (*SHAPE[:2], channels)
    memory = load_folder(str(folder), 0, shape, resize)
    files = load_folder(str(folder), 0, shape, resize, memory_bytes=1000)
    return memory, files


def test_splits_and_statistics_are_the_same(both):
    memory, files = both
    assert isinstance(memory.train.images, np.ndarray)
    for part in ("train", "validation", "test"):
        one, other = getattr(memory, part), getattr(files, part)
        assert isinstance(other.images, ImageFiles)
        assert other.images.shape == one.images.shape
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images, np.asarray(other.images))
    assert memory.mean == files.mean and memory.std == files.std
    assert memory.input_shape == files.input_shape


def test_batches_are_the_same(both):
    def streams(dataset):
        for augmented in (dataset, dataclasses.replace(dataset, crop=True)):
            yield training_batches(augmented, 8, seed=3, first_epoch=1, epochs=2)
        yield evaluation_batches(dataset.test, dataset, 4)

    for one, other in zip(*map(streams, both), strict=True):
        for (x, y), (x_too, y_too) in zip(one, other, strict=True):
            assert x.shape == x_too.shape
            np.testing.assert_array_equal(x, x_too)
            np.testing.assert_array_equal(y, y_too)


def test_samples_are_the_same(both):
    one, other = (sample_arrays(dataset, 16, seed=1) for dataset in both)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_it_is_an_array_in_what_it_says(folder):
    dataset = load_folder(str(folder), 0, SHAPE, memory_bytes=1000)
    files = dataset.train.images
    assert (files.dtype, files.ndim, len(files)) == (np.uint8, 4, files.shape[0])
    np.testing.assert_array_equal(np.asarray(files[2:5]), np.asarray(files)[2:5])
    assert repr(files) == f"ImageFiles({len(files)} files, 20x24x3)"
    assert normalize(files[:2], dataset).dtype == np.float32


def test_a_file_that_is_no_image_is_found_before_anything_runs(folder, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number, file in enumerate(sorted((folder / name).iterdir())[:4]):
            (tmp_path / name / f"{number}{file.suffix}").write_bytes(file.read_bytes())
    (tmp_path / "dog" / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"note\.png cannot be read: it is damaged or no image"):
        load_folder(str(tmp_path), 0, SHAPE, memory_bytes=1000)
