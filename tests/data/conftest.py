from __future__ import annotations

import numpy as np
import pytest

from ehap_tf.data import ImageDataset, Split


def make_split(examples: int, seed: int = 0, size: int = 32, classes: int = 10) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (examples, size, size, 3), np.uint8)
    return Split(images, np.arange(examples, dtype=np.int64) % classes)


@pytest.fixture
def dataset() -> ImageDataset:
    return ImageDataset(
        name="noise",
        train=make_split(50, 0),
        validation=make_split(11, 1),
        test=make_split(12, 2),
        num_classes=10,
        class_names=tuple("abcdefghij"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )
