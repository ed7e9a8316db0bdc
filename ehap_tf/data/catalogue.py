"""Data sets by name."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from ehap_tf.data.cifar import load_cifar
from ehap_tf.data.digits import load_digits
from ehap_tf.data.folder import load_folder
from ehap_tf.data.image_dataset import ImageDataset, Split, channel_statistics
from ehap_tf.data.sizes import Shape, images_of_shape

DATASET_NAMES: tuple[str, ...] = ("cifar10", "cifar100", "digits", "folder:PATH")


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    shape: Shape = (None, None, None),
    resize: str = "crop",
) -> ImageDataset:
    """Loads a data set into memory as training, validation and test split.

    Args:
        name: "cifar10", "cifar100", "digits", or "folder:PATH".
        data_dir: TFDS data directory of the CIFAR sets; None means TFDS_DATA_DIR.
        seed: which examples are set aside for validation. Leave it at 0 for models that are to be
            compared: under another seed, a model's validation images are in its training set.
        shape: (height, width, channels) that images are brought to, those of a model's input; None
            leaves what they have.
        resize: "crop" keeps the middle of an image of another ratio, "stretch" all of it.

    Raises:
        ValueError: an unknown name, or a folder without usable images.
        FileNotFoundError: the data is not there and cannot be fetched.
    """
    if name.startswith("folder:") and name != "folder:":
        return load_folder(name.removeprefix("folder:"), seed, shape, resize)
    if name in ("cifar10", "cifar100"):
        dataset = load_cifar(name, data_dir, seed)
    elif name == "digits":
        dataset = load_digits(seed)
    else:
        hint = f" For a folder of images: folder:{name}" if pathlib.Path(name).is_dir() else ""
        raise ValueError(
            f"dataset must be one of {', '.join(DATASET_NAMES)}. Received: {name!r}.{hint}"
        )
    return _of_shape(dataset, shape, resize)


def _of_shape(dataset: ImageDataset, shape: Shape, resize: str) -> ImageDataset:
    train, validation, test = (
        Split(images_of_shape(np.asarray(split.images), shape, resize), split.labels)
        for split in (dataset.train, dataset.validation, dataset.test)
    )
    changed = dataclasses.replace(dataset, train=train, validation=validation, test=test)
    if changed.input_shape[2] == dataset.input_shape[2]:
        return changed
    mean, std = channel_statistics(changed.train.images)
    return dataclasses.replace(changed, mean=mean, std=std)
