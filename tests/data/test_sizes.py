import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import image_of_shape, images_of_shape, load_dataset

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3)).astype(np.uint8)


def test_an_image_that_fits_is_left_alone():
    image = RANDOM[0]
    assert image_of_shape(image, (12, 20, 3)) is image
    assert images_of_shape(RANDOM, (None, None, None)) is RANDOM


def test_a_crop_keeps_the_ratio_and_the_middle():
    # Vertical stripes of 4 columns: at half of the size the middle 6 of 10 columns are left.
    stripes = np.repeat(np.arange(5) * 60, 4).astype(np.uint8)
    image = np.tile(stripes[None, :, None], (12, 1, 3))
    found = image_of_shape(image, (6, 6, 3), "crop")
    assert found.shape == (6, 6, 3)
    whole = tf.image.resize(image, (6, 10), antialias=True).numpy()
    np.testing.assert_array_equal(found, np.round(whole[:, 2:8]).astype(np.uint8))
    # What is left is symmetric about the middle stripe, of 120.
    sums = found[0, :, 0] + found[0, ::-1, 0].astype(int)
    np.testing.assert_allclose(sums, [240] * 6, atol=1)


def test_a_stretch_keeps_all_of_the_image():
    found = image_of_shape(RANDOM[0], (6, 6, 3), "stretch")
    wanted = tf.image.resize(RANDOM[0], (6, 6), antialias=True).numpy()
    np.testing.assert_array_equal(found, np.round(wanted).astype(np.uint8))


@pytest.mark.parametrize("size", [(7, 31), (24, 24), (5, 3), (12, 7), (1, 1)])
def test_a_crop_has_the_size_that_was_asked_for(size):
    assert image_of_shape(RANDOM[0], (*size, 3), "crop").shape == (*size, 3)


def test_grey_is_the_luma_that_tensorflow_computes():
    found = image_of_shape(RANDOM, (None, None, 1))
    wanted = tf.image.rgb_to_grayscale(RANDOM.astype(np.float32)).numpy()
    assert np.abs(found - wanted).max() <= 0.6
    back = image_of_shape(found, (None, None, 3))
    np.testing.assert_array_equal(back, np.repeat(found, 3, axis=-1))


def test_many_images_are_as_each_by_itself():
    many = np.random.default_rng(1).integers(0, 256, (300, 6, 9, 3)).astype(np.uint8)
    found = images_of_shape(many, (4, 4, 1))
    for index in (0, 255, 256, 299):
        np.testing.assert_array_equal(found[index], image_of_shape(many[index], (4, 4, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"resize must be one of crop, stretch. Received: 'pad'"):
        image_of_shape(RANDOM[0], (6, 6, 3), "pad")
    with pytest.raises(ValueError, match=r"1 or 3 channels.*Received: 3 channels, to be made 4"):
        image_of_shape(RANDOM[0], (None, None, 4))


def test_a_data_set_in_grey_has_statistics_of_its_own():
    digits = load_dataset("digits", shape=(16, 16, 1))
    assert digits.input_shape == (16, 16, 1)
    pixels = digits.train.images / 255
    np.testing.assert_allclose(
        [*digits.mean, *digits.std], [pixels.mean(), pixels.std()], rtol=1e-6
    )


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_a_folder_is_read_in_the_shape_of_a_model(tmp_path, resize):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index, image in enumerate(RANDOM):
            tf.io.write_file(str(tmp_path / name / f"{index}.png"), tf.io.encode_png(image))
    found = load_dataset(f"folder:{tmp_path}", shape=(6, 6, 1), resize=resize)
    assert found.input_shape == (6, 6, 1) and len(found.mean) == 1
    wanted = sorted(image_of_shape(image, (6, 6, 1), resize).tobytes() for image in RANDOM)
    images = [*found.train.images, *found.validation.images, *found.test.images]
    assert sorted({image.tobytes() for image in images}) == wanted


def test_a_folder_without_its_prefix_is_recognised(tmp_path):
    with pytest.raises(ValueError, match=f"For a folder of images: folder:{tmp_path}"):
        load_dataset(str(tmp_path))
