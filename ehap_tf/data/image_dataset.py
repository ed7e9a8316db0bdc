"""The values that hold images: a split, and a data set of three splits."""

from __future__ import annotations

import dataclasses

import numpy as np

from ehap_tf.data.arrays import check_labels
from ehap_tf.data.image_files import ImageFiles


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8, shape (examples, height, width, channels), values 0 to 255; an array, or
            `ImageFiles` that are read when they are wanted.
        labels: int64, shape (examples,), values 0 to num_classes - 1.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                "images must be uint8 of shape (examples, height, width, channels). "
                f"Received: {self.images.dtype} of shape {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must hold one label for each of the {len(self.images)} images. "
                f"Received: shape {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return f"Split({len(self)} images of {height}x{width}x{channels})"

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """Three disjoint splits and how their pixels are normalised.

    Attributes:
        name: what `load_dataset` was asked for.
        train: what the weights are fitted to.
        validation: what choices (the best epoch) are made on.
        test: what is measured once, at the end; nothing is chosen on it.
        num_classes: number of classes.
        class_names: their names, in label order.
        mean: mean of pixel / 255, one value per channel.
        std: standard deviation of pixel / 255, one value per channel.
        augment: training images are shifted by up to 4 pixels (pad 4, random crop).
        crop: a part of each training image, scaled up, takes the place of the shift; needs
            `augment`.
        flip: training images are also mirrored left to right at random; needs `augment`.
        bgr: the model takes blue, green, red, in which order `mean` and `std` are then; `images`
            are red, green, blue.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = True
    flip: bool = True
    bgr: bool = False
    crop: bool = False

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if not len(split):
                raise ValueError(f"The {part} split of {self.name!r} is empty")
            try:
                check_labels(split.labels, self.num_classes)
            except ValueError as error:
                raise ValueError(f"The {part} split of {self.name!r}: {error}") from error

    def __repr__(self) -> str:
        height, width, channels = self.input_shape
        return (
            f"ImageDataset({self.name!r}: {len(self.train)} training, {len(self.validation)} "
            f"validation and {len(self.test)} test images of {height}x{width}x{channels}, "
            f"{self.num_classes} classes)"
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)


def split_validation(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divides `split` into a training and a validation part, at random but fixed by `seed`.

    Both parts keep at least one example; the order inside each part is that of `split`.

    Raises:
        ValueError: `split` holds fewer than two examples.
    """
    if len(split) < 2:
        raise ValueError(
            "A training set of at least 2 images is needed, to set some aside for validation. "
            f"Received: {len(split)}"
        )
    held_out = min(max(1, round(fraction * len(split))), len(split) - 1)
    order = np.random.default_rng(seed).permutation(len(split))
    return split.take(np.sort(order[held_out:])), split.take(np.sort(order[:held_out]))


STATISTICS_OF = 1024
"""Images that tell mean and deviation of a set which is not in memory."""


def channel_statistics(
    images: np.ndarray | ImageFiles,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255, one value per channel.

    Args:
        images: uint8, shape (examples, height, width, channels); of files some, drawn at random.
    """
    if isinstance(images, ImageFiles):
        images = images[np.random.default_rng(0).permutation(len(images))[:STATISTICS_OF]]
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 64):
        part = np.asarray(images[start : start + 64])
        for channel, count in enumerate(counts):
            count += np.bincount(part[..., channel].reshape(-1), minlength=256)
    # From counts of whole numbers: exact, and without a float copy of the images.
    values = np.arange(256) / 255.0
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    # A channel of one value throughout must not divide by zero.
    std = np.maximum(variance, 1e-6) ** 0.5
    return tuple(mean.tolist()), tuple(std.tolist())
