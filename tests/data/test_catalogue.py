from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import load_dataset, normalize


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"cifar10, cifar100, digits, folder:PATH.*'mnist'"):
        load_dataset("mnist")


def test_digits_are_real_balanced_and_normalised():
    digits = load_dataset("digits")
    assert digits.input_shape == (32, 32, 3)
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    assert not digits.flip
    everything = np.concatenate([s.images for s in (digits.train, digits.validation, digits.test)])
    normalised = normalize(everything, digits)
    assert abs(normalised.mean()) < 0.01
    assert abs(normalised.std() - 1) < 0.01
    assert min(np.bincount(digits.test.labels)) > 20
    # A nearest neighbour in the training split tells them apart: the labels are those of the
    # images.
    train = digits.train.images[..., ::4, ::4, 0].reshape(len(digits.train), -1).astype(float)
    test = digits.test.images[..., ::4, ::4, 0].reshape(len(digits.test), -1).astype(float)
    distances = ((test[:, np.newaxis] - train[np.newaxis]) ** 2).sum(-1)
    guesses = digits.train.labels[distances.argmin(1)]
    assert np.mean(guesses == digits.test.labels) > 0.95


def test_another_seed_moves_validation_images_but_never_test_images():
    first, second = load_dataset("digits", seed=0), load_dataset("digits", seed=1)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert np.any(first.validation.images != second.validation.images)


def write_images(folder: pathlib.Path, count: int, value: int, side: int = 20) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        image = np.full((side, side, 3), value, np.uint8)
        image[number % side] = 255
        (folder / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())


def test_a_folder_is_read_with_its_class_names(tmp_path: pathlib.Path):
    write_images(tmp_path / "dark", 10, 10)
    write_images(tmp_path / "bright", 10, 200)
    (tmp_path / "dark" / "notes.txt").write_text("not an image")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.class_names == ("bright", "dark")
    assert data.input_shape == (20, 20, 3)
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    for split in (data.train, data.validation, data.test):
        is_bright = np.median(split.images, axis=(1, 2, 3)) == 200
        np.testing.assert_array_equal(split.labels, np.where(is_bright, 0, 1))
    normalised = normalize(data.train.images, data)
    assert np.abs(normalised.mean((0, 1, 2))).max() < 1e-4
    assert np.abs(normalised.std((0, 1, 2)) - 1).max() < 1e-4


def test_a_folder_with_train_and_test_keeps_them_apart(tmp_path: pathlib.Path):
    for part, value in (("train", 10), ("test", 90)):
        write_images(tmp_path / part / "a", 6, value)
        write_images(tmp_path / part / "b", 6, value + 5)
    data = load_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (11, 1, 12)
    assert np.median(data.test.images) >= 90
    write_images(tmp_path / "test" / "c", 6, 0)
    with pytest.raises(ValueError, match=r"same classes.*: c"):
        load_dataset(f"folder:{tmp_path}")


def test_parts_are_not_taken_for_classes(tmp_path: pathlib.Path):
    for part in ("train", "val"):
        write_images(tmp_path / part / "a", 6, 10)
        write_images(tmp_path / part / "b", 6, 20)
    with pytest.raises(ValueError, match=r"sub-folder for each class.*Received: train, val"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "val").rename(tmp_path / "test")
    write_images(tmp_path / "validation" / "a", 6, 10)
    with pytest.warns(RuntimeWarning, match="validation is not read"):
        assert len(load_dataset(f"folder:{tmp_path}").test) == 12
    for name in ("train", "bus"):
        write_images(tmp_path / "vehicles" / name, 6, 10)
    assert load_dataset(f"folder:{tmp_path / 'vehicles'}").class_names == ("bus", "train")


def test_images_of_another_size_are_resized_and_counted(tmp_path: pathlib.Path):
    write_images(tmp_path / "a", 10, 10)
    write_images(tmp_path / "b", 3, 200, side=32)
    with pytest.warns(RuntimeWarning, match="3 of 13 images are not 20x20"):
        data = load_dataset(f"folder:{tmp_path}")
    assert data.input_shape == (20, 20, 3)


def test_folders_that_cannot_be_used(tmp_path: pathlib.Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_dataset(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"at least 2 classes. Received: 0"):
        load_dataset(f"folder:{tmp_path}")
    write_images(tmp_path / "a", 3, 10)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="b has no images"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        load_dataset(f"folder:{tmp_path}")
