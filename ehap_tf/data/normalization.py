"""From pixels to numbers: the conventions in which networks are trained, and the map of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.data.image_dataset import ImageDataset

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Means of blue, green and red over ImageNet, of the networks that were trained with Caffe.
_CAFFE_MEANS = (103.939, 116.779, 123.68)

_ALL_CHANNELS = {"none": (0.0, 1 / 255), "0..1": (0.0, 1.0), "-1..1": (0.5, 0.5)}
_RGB = {
    "imagenet": (_IMAGENET_MEAN, _IMAGENET_STD, False),
    "caffe": (tuple(value / 255 for value in _CAFFE_MEANS), (1 / 255,) * 3, True),
}
CONVENTIONS = ("dataset", *_ALL_CHANNELS, *_RGB)
"""Names that `in_convention` takes."""


def conventions_for(channels: int) -> tuple[str, ...]:
    """The conventions that there are for images of so many channels."""
    return tuple(name for name in CONVENTIONS if channels == 3 or name not in _RGB)


def in_convention(dataset: ImageDataset, name: str) -> ImageDataset:
    """The same images, normalised by another convention.

    Args:
        dataset: normalised by its own mean and deviation, as `load_dataset` gives it.
        name: dataset: mean and deviation of the data set; none: pixels of 0 to 255 as they are, for
            a network that has its preprocessing inside; 0..1 and -1..1: that range; imagenet: mean
            and deviation of ImageNet; caffe: blue, green, red less their means over ImageNet.

    Raises:
        ValueError: an unknown name, or one that is for three channels.
    """
    channels = dataset.input_shape[2]
    if name not in conventions_for(channels):
        raise ValueError(
            f"normalization must be one of {', '.join(conventions_for(channels))} for images of "
            f"{channels} channel{'s' * (channels != 1)}. Received: {name!r}"
        )
    if name == "dataset":
        return dataset
    if name in _RGB:
        mean, std, bgr = _RGB[name]
        return dataclasses.replace(dataset, mean=mean, std=std, bgr=bgr)
    one_mean, one_std = _ALL_CHANNELS[name]
    return dataclasses.replace(
        dataset, mean=(one_mean,) * channels, std=(one_std,) * channels, bgr=False
    )


def normalize(images: Any, dataset: ImageDataset) -> Any:
    """Computes (pixel / 255 - mean) / std, channel by channel.

    Args:
        images: 0 to 255, shape (..., channels); a numpy array or a tensor.
        dataset: whose `mean`, `std` and order of channels are used.

    Returns:
        float32 of the same shape and kind; blue first where `dataset.bgr`.
    """
    # One multiplication and one addition in float32, so that numpy and TensorFlow agree.
    std = np.asarray(dataset.std, np.float64)
    scale = (1.0 / (255.0 * std)).astype(np.float32)
    shift = (-np.asarray(dataset.mean, np.float64) / std).astype(np.float32)
    if not tf.is_tensor(images):
        images = np.asarray(images)
    if dataset.bgr:
        images = images[..., ::-1]
    if tf.is_tensor(images):
        return tf.cast(images, tf.float32) * scale + shift
    return images.astype(np.float32) * scale + shift


def formula(mean: Sequence[float], std: Sequence[float], bgr: bool = False) -> str:
    """What becomes of a pixel of 0 to 255, in one line.

    Example:
        >>> formula((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        '(pixel / 255 - 0.5) / 0.5'
        >>> formula((0.0,), (1 / 255,))
        'pixel'
        >>> formula((0.0,), (1.0,))
        'pixel / 255'
    """
    order = "; channels: blue, green, red" if bgr else ""
    mean, std = list(mean), list(std)
    if all(abs(255 * value - 1) < 1e-6 for value in std):
        means = [255 * value for value in mean]
        return (f"pixel - {_values(means)}" if any(means) else "pixel") + order
    start = f"(pixel / 255 - {_values(mean)})" if any(mean) else "pixel / 255"
    return start + ("" if set(std) == {1.0} else f" / {_values(std)}") + order


def _values(values: Sequence[float]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"
