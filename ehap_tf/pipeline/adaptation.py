"""What follows surgery: a slim model adapted to what it lost, without labels."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.data import ImageDataset, sample_arrays, training_batches
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning import PruningPlan, compensate, recalibrate, repair

BATCHES = 32
"""That biases and BatchNorm's statistics are adapted on where nothing else is said."""


def adapted(
    slim: tf_keras.Model,
    model: tf_keras.Model,
    plan: PruningPlan,
    data: Any,
    *,
    repair_images: int,
    seed: int,
    batches: int = BATCHES,
    progress: ProgressCallback = no_progress,
) -> tf_keras.Model:
    """`prune(model, plan)`, repaired, or with other biases and statistics, or as it is.

    Args:
        slim: `prune(model, plan)`.
        model: what was pruned.
        plan: what was kept.
        data: as `repair` and `recalibrate` take it.
        repair_images: examples that kernels are solved on; with 0 biases and BatchNorm's
            statistics are adapted.
        seed: of the repair.
        batches: of `data` for these; with 0 the model stays as it is.
        progress: of the repair.
    """
    if repair_images:
        return repair(slim, model, plan, data, repair_images, seed=seed, progress=progress)
    if not batches:
        return slim
    return recalibrate(compensate(slim, model, plan, data, batches), data, batches=batches)


def adapted_on_images(
    slim: tf_keras.Model,
    model: tf_keras.Model,
    plan: PruningPlan,
    dataset: ImageDataset,
    *,
    repair_images: int,
    batches: int,
    batch_size: int,
    order: int,
    seed: int,
    progress: ProgressCallback = no_progress,
) -> tf_keras.Model:
    """The same on training images: some as they are, or batches of the training stream.

    Args:
        slim: as for `adapted`.
        model: as for `adapted`.
        plan: as for `adapted`.
        dataset: of the images.
        repair_images: as for `adapted`, at most all training images.
        batches: as for `adapted`.
        batch_size: of the stream.
        order: its seed.
        seed: of the images and the repair.
        progress: of the repair.
    """
    images = min(repair_images, len(dataset.train))
    if not (images or batches):
        return slim
    if images:
        data, _ = sample_arrays(dataset, images, seed)
    else:
        data = training_batches(dataset, batch_size, order, epochs=1_000).take(batches)
    return adapted(
        slim, model, plan, data, repair_images=images, seed=seed, batches=batches, progress=progress
    )
