"""In which convention a model takes its pixels, found by trying."""

from __future__ import annotations

import dataclasses

import numpy as np
import tf_keras
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ehap_tf.data import ImageDataset, Split, conventions_for, evaluation_batches, in_convention
from ehap_tf.models import ends_in_softmax
from ehap_tf.progress import ProgressCallback, no_progress

TRIED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the outputs of a model are worth in one convention.

    Attributes:
        accuracy: share of the images whose largest output is their label.
        loss: cross-entropy, in nats, at the temperature at which it is least.
        is_chance: whether the accuracy could be that of a guess.
    """

    accuracy: float
    loss: float
    is_chance: bool


def try_conventions(
    model: tf_keras.Model,
    dataset: ImageDataset,
    images: int = TRIED_IMAGES,
    progress: ProgressCallback = no_progress,
) -> dict[str, Trial]:
    """Tries a classifier in every convention of normalisation, the best first.

    The best has the least cross-entropy, at the best temperature: a network may be too sure in the
    right convention, and unsure in a wrong one in which it still finds the classes.

    Args:
        model: ends in logits or probabilities, a number for each class.
        dataset: in the model's shape, normalised by itself; its validation images are looked at,
            and training images where those are too few.
        images: how many, at most.
        progress: called with conventions done, conventions in all, and no figures.
    """
    split = _some(dataset, images)
    names = conventions_for(dataset.input_shape[2])
    trials: dict[str, Trial] = {}
    for done, name in enumerate(names, start=1):
        trials[name] = _trial(model, split, in_convention(dataset, name))
        progress(done, len(names), {})
    return dict(sorted(trials.items(), key=lambda item: item[1].loss))


def is_chance(accuracy: float, labels: np.ndarray) -> bool:
    """Whether an accuracy is within two standard errors of always saying the commonest class.

    Args:
        accuracy: on the examples of `labels`.
        labels: class numbers, shape (examples,).
    """
    often = float(np.bincount(np.asarray(labels).reshape(-1)).max()) / len(labels)
    return accuracy <= often + 2 * (often * (1 - often) / len(labels)) ** 0.5


def _some(dataset: ImageDataset, images: int) -> Split:
    parts: list[Split] = []
    for split in (dataset.validation, dataset.train):
        wanted = min(images - sum(len(part) for part in parts), len(split))
        # At random: files of a folder lie by class.
        chosen = np.random.default_rng(0).choice(len(split), wanted, replace=False)
        parts.append(split.take(np.sort(chosen)))
    return Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _trial(model: tf_keras.Model, split: Split, dataset: ImageDataset) -> Trial:
    outputs = np.concatenate(
        [
            np.asarray(model(images, training=False), np.float64)
            for images, _ in evaluation_batches(split, dataset, 64)
        ]
    )
    if not np.isfinite(outputs).all():
        return Trial(0.0, float("inf"), True)
    right = float((outputs.argmax(-1) == split.labels).mean())
    logits = np.log(np.maximum(outputs, 1e-12)) if ends_in_softmax(model) else outputs
    scale = max(float(np.abs(logits - logits.mean(-1, keepdims=True)).max()), 1e-12)

    def loss(log_sharpness: float) -> float:
        scaled = log_softmax(logits * (np.exp(log_sharpness) / scale), axis=-1)
        return float(-scaled[np.arange(len(split)), split.labels].mean())

    least = float(minimize_scalar(loss, bounds=(-5, 8), method="bounded").fun)
    return Trial(right, least, is_chance(right, split.labels))
