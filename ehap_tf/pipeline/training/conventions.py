"""In which convention a model takes its pixels, found by trying."""

from __future__ import annotations

import dataclasses

import numpy as np
import tf_keras
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ehap_tf.data import ImageDataset, Split, conventions_for, evaluation_batches, in_convention
from ehap_tf.graph import BatchNorm, batch_norms
from ehap_tf.models import Readout, copy_model
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning import recalibrate
from ehap_tf.quantization.tflite.evaluate import classes

TRIED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the outputs of a model are worth in one convention.

    Attributes:
        accuracy: share of the images whose largest output is their label.
        loss: cross-entropy, in nats, at the temperature at which it is least.
        is_chance: whether the accuracy could be that of a guess.
        losses: of each image, which `loss` is the mean of.
    """

    accuracy: float
    loss: float
    is_chance: bool
    losses: np.ndarray = dataclasses.field(repr=False, compare=False)


def try_conventions(
    model: tf_keras.Model,
    dataset: ImageDataset,
    images: int = TRIED_IMAGES,
    progress: ProgressCallback = no_progress,
) -> dict[str, Trial]:
    """Tries a classifier in every convention of normalisation, the best first.

    The best has the least cross-entropy, at the best temperature: a network may be too sure in the
    right convention, and unsure in a wrong one in which it still finds the classes. Where several
    are as good, within two standard errors over the images, it is the one in which the statistics
    of BatchNorm are those that the training left.

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
    order = sorted(names, key=lambda name: trials[name].loss)
    as_good = [name for name in order if _as_good(trials[name], trials[order[0]])]
    if len(as_good) > 1:
        distances = {
            name: _distance(model, split, in_convention(dataset, name)) for name in as_good
        }
        order[: len(as_good)] = sorted(as_good, key=lambda name: distances[name])
    return {name: trials[name] for name in order}


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
        np.concatenate([np.asarray(part.images) for part in parts]),
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
        return Trial(0.0, float("inf"), True, np.full(len(split), np.inf))
    readout = Readout.of(model)
    right = float((classes(outputs, readout.threshold) == split.labels).mean())
    logits = _logits(outputs, readout)
    scale = max(float(np.abs(logits - logits.mean(-1, keepdims=True)).max()), 1e-12)

    def losses(log_sharpness: float) -> np.ndarray:
        scaled = log_softmax(logits * (np.exp(log_sharpness) / scale), axis=-1)
        return -scaled[np.arange(len(split)), split.labels]

    best = minimize_scalar(lambda at: losses(at).mean(), bounds=(-5, 8), method="bounded")
    return Trial(right, float(best.fun), is_chance(right, split.labels), losses(best.x))


def _logits(outputs: np.ndarray, readout: Readout) -> np.ndarray:
    """For each class, two for a single output."""
    if readout.is_binary and readout.are_probabilities:
        outputs = np.concatenate([1 - outputs, outputs], axis=-1)
    elif readout.is_binary:
        outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=-1)
    return np.log(np.maximum(outputs, 1e-12)) if readout.are_probabilities else outputs


def _as_good(one: Trial, best: Trial) -> bool:
    if not np.isfinite(one.loss):
        return False
    more = one.losses - best.losses
    return bool(more.mean() <= 2 * more.std() / len(more) ** 0.5 + 1e-3)


def _distance(model: tf_keras.Model, split: Split, dataset: ImageDataset) -> float:
    """How far the statistics of BatchNorm are from those of the images; 0 without BatchNorm.

    The Kullback-Leibler divergence of two normal distributions, of the layer that is farthest,
    there of the channel in the middle.
    """
    copy = copy_model(model)
    for norm in batch_norms(copy):
        norm.trainable = True
    seen = recalibrate(copy, evaluation_batches(split, dataset, 64), batches=-(-len(split) // 64))
    distances = [0.0]
    for before, now in zip(batch_norms(copy), batch_norms(seen), strict=True):
        mean, variance = _statistics(before)
        new_mean, new_variance = _statistics(now)
        ratio = new_variance / variance
        distance = (ratio + (new_mean - mean) ** 2 / variance - 1 - np.log(ratio)) / 2
        distances.append(float(np.median(distance)))
    return max(distances)


def _statistics(norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    return norm.moving_mean.numpy(), norm.moving_variance.numpy() + norm.epsilon
