"""CIFAR-10 and CIFAR-100 through tensorflow-datasets."""

from __future__ import annotations

import os
import pathlib
import socket
import urllib.request
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.data.image_dataset import ImageDataset, Split, split_validation
from ehap_tf.files import CorruptFileError

# Mean and standard deviation of pixel / 255 over the training images, as EHAP uses them.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
DOWNLOAD_HOST = ("www.cs.toronto.edu", 443)


def load_cifar(name: str, data_dir: str | os.PathLike[str] | None, seed: int) -> ImageDataset:
    """Reads a prepared CIFAR set, or downloads and prepares it where it is absent.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: TFDS data directory; None means the variable TFDS_DATA_DIR, then TFDS's default.
        seed: which tenth of the training images is set aside for validation.

    Raises:
        FileNotFoundError: not prepared there, and the download failed.
        CorruptFileError: prepared, but its files are damaged.
    """
    # Imported here: it takes seconds, and the other data sets do without it.
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    _prepare(builder, name)
    train, test = (_read(tfds, builder, split) for split in ("train", "test"))
    train, validation = split_validation(train, 0.1, seed)
    mean, std = STATISTICS[name]
    label = builder.info.features["label"]
    return ImageDataset(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        mean=mean,
        std=std,
    )


def _prepare(builder: Any, name: str) -> None:
    folder = pathlib.Path(builder.data_dir)
    if (folder / "dataset_info.json").exists():
        return
    try:
        _check_network()
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises a dozen unrelated types when there is no network.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileNotFoundError(
            f"Data set {name!r} is not prepared in {folder.parent.parent} and its download failed "
            f"({reason}). Name a folder that holds it with --data_dir (data_dir=) or the variable "
            "TFDS_DATA_DIR, or connect this machine to the network."
        ) from error


def _check_network() -> None:
    """Fails at once where TFDS would retry for minutes."""
    # Behind a proxy the host may have no address here and still be within reach.
    if not urllib.request.getproxies():
        socket.create_connection(DOWNLOAD_HOST, timeout=10.0).close()


def _read(tfds: Any, builder: Any, split: str) -> Split:
    try:
        batch = builder.as_dataset(split, batch_size=-1, as_supervised=True)
        images, labels = tfds.as_numpy(batch)
    except (tf.errors.OpError, AssertionError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CorruptFileError(
            f"The prepared {split} images in {builder.data_dir} are damaged or incomplete "
            f"({reason}). Remove that folder and prepare {builder.name} again"
        ) from error
    return Split(np.asarray(images, np.uint8), np.asarray(labels, np.int64))
