"""Images of one's own: a folder with a sub-folder for each class."""

from __future__ import annotations

import collections
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from ehap_tf.data.image_dataset import (
    ImageDataset,
    Split,
    channel_statistics,
    split_validation,
)
from ehap_tf.data.image_files import ImageFiles
from ehap_tf.data.sizes import Shape, image_of_shape

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TEST_FRACTION = 0.2
MEMORY_BYTES = 2**30
"""What images may take in memory; of larger sets each image is read when it is wanted."""
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8")
_UNREADABLE = "The image {} cannot be read: it is damaged or no image"
PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def load_folder(
    path: str,
    seed: int,
    shape: Shape = (None, None, None),
    resize: str = "crop",
    memory_bytes: int = MEMORY_BYTES,
) -> ImageDataset:
    """The images of a folder, as RGB unless `shape` wants one channel.

    They are in memory where they take at most `memory_bytes`. Larger sets are read from their files
    whenever images are wanted; without a size in `shape` all are then brought to that of the first,
    and mean and deviation are those of 1,024 of them.

    The class names are the names of the sub-folders, in alphabetical order. Where `path` has the
    sub-folders `train` and `test`, the classes lie in those; otherwise a fixed fifth of the images
    is the test split. A tenth of the training images, chosen by `seed`, is set aside for
    validation. Without a size in `shape`, images of another size than most are brought to that
    size, and a warning says how many.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no classes, other parts than train and test, a class without images, an image
            that cannot be read, or classes that differ between train and test.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"folder:PATH names no folder. Received: {path!r}")
    if (root / "train").is_dir() and (root / "test").is_dir():
        names, files, labels = _listed(root / "train")
        test_names, test_files, test_labels = _listed(root / "test")
        if test_names != names:
            differing = sorted(set(names) ^ set(test_names))
            raise ValueError(
                f"{root / 'train'} and {root / 'test'} must have the same classes. Only in one of "
                f"them: {', '.join(differing)}"
            )
        unread = sorted({*_parts(root)} - {"train", "test"})
        if unread:
            warnings.warn(
                f"{root / unread[0]} is not read: validation images are a tenth of those of train",
                RuntimeWarning,
                stacklevel=3,
            )
        images = _read(files + test_files, shape, resize, memory_bytes)
        everything = Split(images, np.array(labels + test_labels, np.int64))
        train = everything.take(np.arange(len(files)))
        test = everything.take(np.arange(len(files), len(everything)))
    else:
        _require_classes(root)
        names, files, labels = _listed(root)
        everything = Split(_read(files, shape, resize, memory_bytes), np.array(labels, np.int64))
        train, test = split_validation(everything, TEST_FRACTION, seed=0)
    train, validation = split_validation(train, 0.1, seed)
    mean, std = channel_statistics(train.images)
    return ImageDataset(
        name=f"folder:{path}",
        train=train,
        validation=validation,
        test=test,
        num_classes=len(names),
        class_names=names,
        mean=mean,
        std=std,
    )


def _parts(root: pathlib.Path) -> list[str]:
    """The sub-folders that are named like parts of a data set; classes may be, too (trains)."""
    return [folder.name for folder in _sub_folders(root) if folder.name.lower() in PARTS]


def _sub_folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _require_classes(root: pathlib.Path) -> None:
    parts = _parts(root)
    if parts and len(parts) == len(_sub_folders(root)):
        raise ValueError(
            f"{root} must have a sub-folder for each class, or the two sub-folders train and test "
            f"with the classes in them. Received: {', '.join(parts)}"
        )


def _listed(root: pathlib.Path) -> tuple[tuple[str, ...], list[pathlib.Path], list[int]]:
    folders = _sub_folders(root)
    if len(folders) < 2:
        raise ValueError(
            f"{root} must have a sub-folder of images for each of at least 2 classes. "
            f"Received: {len(folders)} sub-folders"
        )
    files: list[pathlib.Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise ValueError(
                f"The class folder {folder} has no images ({', '.join(SUFFIXES)}). Fill it or "
                "remove it"
            )
        files += inside
        labels += [label] * len(inside)
    return tuple(folder.name for folder in folders), files, labels


def _read(
    files: list[pathlib.Path], shape: Shape, resize: str, memory_bytes: int
) -> np.ndarray | ImageFiles:
    """The images in memory, where they fit into so many bytes, else as files."""
    first = _decoded(files[0]).shape
    size = (shape[0] or first[0], shape[1] or first[1], shape[2] or first[2])
    if len(files) * int(np.prod(size)) > memory_bytes:
        return ImageFiles([str(_checked(file)) for file in files], size, resize)
    # Each is brought to size when it is read: large ones need not lie in memory together.
    images = [image_of_shape(_decoded(file), shape, resize) for file in files]
    sizes = collections.Counter(image.shape[:2] for image in images)
    common, count = sizes.most_common(1)[0]
    if count < len(images):
        warnings.warn(
            f"{len(images) - count} of {len(images)} images are not {common[0]}x{common[1]} pixels "
            "like most, and were resized",
            RuntimeWarning,
            stacklevel=4,
        )
    return np.stack([image_of_shape(image, (*common, None), resize) for image in images])


def _checked(file: pathlib.Path) -> pathlib.Path:
    """The file, if it begins as an image does: to decode them all would take minutes."""
    with file.open("rb") as content:
        start = content.read(8)
    if not start.startswith(_STARTS):
        raise ValueError(_UNREADABLE.format(file))
    return file


def _decoded(file: pathlib.Path) -> np.ndarray:
    try:
        image = tf.io.decode_image(file.read_bytes(), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(_UNREADABLE.format(file)) from error
    return np.asarray(image.numpy(), np.uint8)
