"""Data sets by name."""

from __future__ import annotations

import os

from ehap_tf.data.cifar import load_cifar
from ehap_tf.data.digits import load_digits
from ehap_tf.data.folder import load_folder
from ehap_tf.data.image_dataset import ImageDataset

DATASET_NAMES: tuple[str, ...] = ("cifar10", "cifar100", "digits", "folder:PATH")


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> ImageDataset:
    """Loads a data set into memory as training, validation and test split.

    Args:
        name: "cifar10", "cifar100", "digits", or "folder:PATH".
        data_dir: TFDS data directory of the CIFAR sets; None means TFDS_DATA_DIR.
        seed: which examples are set aside for validation. Leave it at 0 for models that are to be
            compared: under another seed, a model's validation images are in its training set.

    Raises:
        ValueError: an unknown name, or a folder without usable images.
        FileNotFoundError: the data is not there and cannot be fetched.
    """
    if name in ("cifar10", "cifar100"):
        return load_cifar(name, data_dir, seed)
    if name == "digits":
        return load_digits(seed)
    if name.startswith("folder:") and name != "folder:":
        return load_folder(name.removeprefix("folder:"), seed)
    raise ValueError(f"dataset must be one of {', '.join(DATASET_NAMES)}. Received: {name!r}")
