"""Each convention against the formula that its name stands for."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import CONVENTIONS, ImageDataset, Split, formula, in_convention, normalize

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def dataset(images=PIXELS) -> ImageDataset:
    split = Split(images, np.arange(6) % 2)
    channels = images.shape[-1]
    return ImageDataset(
        "some", split, split, split, 2, ("a", "b"), (0.4,) * channels, (0.2,) * channels
    )


@pytest.mark.parametrize(
    ("name", "mode"), [("-1..1", "tf"), ("imagenet", "torch"), ("caffe", "caffe")]
)
def test_conventions_are_those_of_preprocess_input(name, mode):
    wanted = keras.applications.imagenet_utils.preprocess_input(
        PIXELS.astype(np.float32), data_format="channels_last", mode=mode
    )
    found = normalize(PIXELS, in_convention(dataset(), name))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "map_"),
    [
        ("none", lambda x: x),
        ("0..1", lambda x: x / 255),
        ("-1..1", lambda x: x / 127.5 - 1),
        ("dataset", lambda x: (x / 255 - 0.4) / 0.2),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_conventions_of_any_number_of_channels(name, map_, channels):
    images = PIXELS[..., :channels]
    known = in_convention(dataset(images), name)
    np.testing.assert_allclose(normalize(images, known), map_(images.astype(np.float64)), atol=1e-4)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_tensors_and_arrays_agree_to_the_bit(name):
    known = in_convention(dataset(), name)
    np.testing.assert_array_equal(
        normalize(tf.constant(PIXELS), known).numpy(), normalize(PIXELS, known)
    )


@pytest.mark.parametrize("name", ["imagenet", "caffe", "torch"])
def test_a_convention_that_grey_images_do_not_have(name):
    with pytest.raises(ValueError, match=rf"dataset, none, 0..1, -1..1 .*1 channel. .*'{name}'"):
        in_convention(dataset(PIXELS[..., :1]), name)


def test_the_formula_says_what_is_computed():
    texts = {}
    for name in CONVENTIONS:
        known = in_convention(dataset(), name)
        texts[name] = formula(known.mean, known.std, known.bgr)
    assert texts == {
        "dataset": "(pixel / 255 - 0.4) / 0.2",
        "none": "pixel",
        "0..1": "pixel / 255",
        "-1..1": "(pixel / 255 - 0.5) / 0.5",
        "imagenet": "(pixel / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
        "caffe": "pixel - (103.939, 116.779, 123.68); channels: blue, green, red",
    }


def test_another_convention_leaves_the_images_alone():
    before = dataset()
    after = in_convention(before, "caffe")
    assert after.train is before.train and not before.bgr
    assert dataclasses.replace(after, mean=before.mean, std=before.std, bgr=False) == before
