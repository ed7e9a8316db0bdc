"""Real handwritten digits that come with scikit-learn: no download, trained in a minute."""

from __future__ import annotations

import numpy as np

from ehap_tf.data.image_dataset import ImageDataset, Split, split_validation

# Mean and standard deviation of pixel / 255 over the 1797 images.
MEAN, STD = 0.3053, 0.3760
TEST_FRACTION = 0.2


def load_digits(seed: int) -> ImageDataset:
    """1797 digits of 8x8 pixels in 16 greys, each pixel enlarged to 4x4, as 32x32x3 images.

    A fifth, always the same, is the test split; `seed` says which tenth of the rest is set aside
    for validation. The images are shifted in training, but not mirrored: a mirrored digit is
    another sign.
    """
    # Imported here: it takes a second, and the other data sets do without it.
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    greys = np.round(np.asarray(digits.images) * (255.0 / 16.0)).astype(np.uint8)
    large = greys.repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(large[..., np.newaxis], 3, axis=-1)
    labels = np.asarray(digits.target, np.int64)
    train, test = split_validation(Split(images, labels), TEST_FRACTION, seed=0)
    train, validation = split_validation(train, 0.1, seed)
    return ImageDataset(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        flip=False,
    )
