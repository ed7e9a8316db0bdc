from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ehap_tf.data import (
    ImageDataset,
    evaluation_batches,
    fitting_batch,
    normalize,
    sample_arrays,
    steps_per_epoch,
    training_batches,
)


def collected(stream) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.numpy(), y.numpy()) for x, y in stream]


def test_starting_at_a_later_epoch_gives_the_rest_of_the_same_stream(dataset: ImageDataset):
    whole = collected(training_batches(dataset, 16, seed=5, epochs=4))
    rest = collected(training_batches(dataset, 16, seed=5, first_epoch=2, epochs=2))
    assert len(whole) == 4 * steps_per_epoch(dataset, 16) == 16
    assert len(rest) == 8
    for (x, y), (late_x, late_y) in zip(whole[8:], rest, strict=True):
        np.testing.assert_array_equal(x, late_x)
        np.testing.assert_array_equal(y, late_y)


def test_an_epoch_has_every_image_and_its_first_ones_fill_the_last_batch(dataset: ImageDataset):
    plain = dataclasses.replace(dataset, augment=False)
    images = np.concatenate([x for x, _ in collected(training_batches(plain, 16, seed=5))])
    assert len(images) == 64
    np.testing.assert_array_equal(images[50:], images[:14])
    seen = sorted(image.tobytes() for image in images[:50])
    assert seen == sorted(image.tobytes() for image in normalize(dataset.train.images, dataset))


@pytest.mark.parametrize(
    ("examples", "wanted", "batch_size"),
    [
        (50_000, 128, 128), (2_560, 128, 128), (2_559, 128, 127), (216, 128, 10), (100, 128, 8),
        (100, 4, 4), (5, 128, 5), (1, 1, 1),
    ],
)  # fmt: skip
def test_few_images_get_batches_that_make_twenty_steps(examples, wanted, batch_size):
    assert fitting_batch(examples, wanted) == batch_size
    assert -(-examples // batch_size) >= min(20, -(-examples // 8))


def test_epochs_and_seeds_differ(dataset: ImageDataset):
    first, second = (
        np.concatenate([x for x, _ in collected(training_batches(dataset, 16, 5, epoch))])
        for epoch in (0, 1)
    )
    other = np.concatenate([x for x, _ in collected(training_batches(dataset, 16, 6))])
    assert np.any(first != second)
    assert np.any(first != other)


def test_an_epoch_holds_each_example_at_most_once_with_its_own_label(dataset: ImageDataset):
    plain = dataclasses.replace(dataset, augment=False)
    originals = {image.tobytes(): n for n, image in enumerate(dataset.train.images)}
    seen = []
    # 50 examples in batches of 25: nothing is dropped.
    for images, labels in collected(training_batches(plain, 25, seed=0)):
        pixels = np.round((images * dataset.std + dataset.mean) * 255).astype(np.uint8)
        seen += [(originals[p.tobytes()], y) for p, y in zip(pixels, labels, strict=True)]
    indices = [index for index, _ in seen]
    assert sorted(indices) == list(range(50))
    assert indices != sorted(indices)
    assert all(dataset.train.labels[index] == label for index, label in seen)


def test_batches_are_float32_images_and_int64_labels(dataset: ImageDataset):
    images, labels = next(iter(training_batches(dataset, 16, seed=0)))
    assert images.shape == (16, 32, 32, 3)
    assert images.dtype.name == "float32"
    assert labels.dtype.name == "int64"


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_a_batch_size_that_no_batch_can_have(dataset: ImageDataset, batch_size: int):
    with pytest.raises(ValueError, match=rf"batch_size .* 50 training images.*{batch_size}"):
        training_batches(dataset, batch_size, seed=0)


def test_evaluation_sees_everything_once_in_order(dataset: ImageDataset):
    batches = collected(evaluation_batches(dataset.test, dataset, 5))
    assert [len(y) for _, y in batches] == [5, 5, 2]
    expected = normalize(dataset.test.images, dataset)
    np.testing.assert_allclose(np.concatenate([x for x, _ in batches]), expected, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), dataset.test.labels)


def test_the_sample_is_random_reproducible_and_from_the_training_split(dataset: ImageDataset):
    x, y = sample_arrays(dataset, 20, seed=1)
    again, _ = sample_arrays(dataset, 20, seed=1)
    other, _ = sample_arrays(dataset, 20, seed=2)
    np.testing.assert_array_equal(x, again)
    assert np.any(x != other)
    originals = {normalize(i, dataset).tobytes(): n for n, i in enumerate(dataset.train.images)}
    indices = [originals[image.tobytes()] for image in x]
    assert len(set(indices)) == 20
    assert indices != list(range(30, 50))
    np.testing.assert_array_equal(y, dataset.train.labels[indices])


@pytest.mark.parametrize("examples", [0, 51])
def test_a_sample_of_impossible_size(dataset: ImageDataset, examples: int):
    with pytest.raises(ValueError, match=rf"examples .* 50 .*{examples}"):
        sample_arrays(dataset, examples, seed=0)
