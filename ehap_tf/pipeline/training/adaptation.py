"""What follows surgery: a slim model adapted to what it lost, without labels."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.data import ImageDataset, sample_arrays, training_batches
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning import PruningPlan, compensate, recalibrate, repair


def adapted(
    slim: tf_keras.Model, model: tf_keras.Model, plan: PruningPlan, data: Any, *,
    repair_images: int, seed: int, batches: int = 32, progress: ProgressCallback = no_progress,
) -> tf_keras.Model:  # fmt: skip
    """`prune(model, plan)` repaired on so many examples, with `seed`.

    With none its biases and BatchNorm's statistics are adapted on so many batches, and with none of
    these either it stays as it is.
    """
    if repair_images:
        return repair(slim, model, plan, data, repair_images, seed=seed, progress=progress)
    if not batches:
        return slim
    return recalibrate(compensate(slim, model, plan, data, batches), data, batches=batches)


def adapting_data(
    dataset: ImageDataset, *, repair_images: int, seed: int, batch_size: int, order: int
) -> Any:
    """Training images for `adapted`: a sample, or the training stream in the order of a seed."""
    if repair_images:
        return sample_arrays(dataset, repair_images, seed)[0]
    return training_batches(dataset, batch_size, order, epochs=1_000)
