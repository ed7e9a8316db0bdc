"""The true loss change of every single removal, measured; resumable."""

from __future__ import annotations

import os
import pathlib
import time
import zlib
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.files import CorruptFileError, atomic_path
from ehap_tf.models.keras3 import either_keras
from ehap_tf.models.precision import resolve_precision
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.sensitivity.batches import HessianBatch
from ehap_tf.sensitivity.filters import find_prunable
from ehap_tf.sensitivity.losses import compiled_weights
from ehap_tf.sensitivity.rank import rank_with_options
from ehap_tf.sensitivity.scores import FilterScores
from ehap_tf.sensitivity.statistics import Floats

SAVE_SECONDS = 10.0


@either_keras()
def oracle_importance(
    model: tf_keras.Model,
    data: Any,
    loss: Any = None,
    precision: str = "fp32",
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    progress: ProgressCallback = no_progress,
    residual: str = "union",
) -> FilterScores:
    """Removes every filter in turn, where its removal acts, and measures the loss.

    One forward pass over the data a filter.

    Args:
        model: Functional or Sequential.
        data: as for `rank_filters`.
        loss: as for `rank_filters`.
        precision: "fp32", "fp16", "bf16" or "auto".
        batch_size: examples computed at once.
        checkpoint: a `.npz` file for what is measured so far; a later call with the same model,
            data, loss and precision goes on from it. It is removed when all is done.
        strategy: spreads the filters over its replicas.
        progress: called as `progress(losses measured, losses to measure, {})`.
        residual: as for `rank_filters`; "tied" removes in turn what goes together.

    Returns:
        Scores are |change of the loss|; `signed` has the change: positive where the filter helps.

    Raises:
        CorruptFileError: the checkpoint cannot be read.
        ValueError: as for `rank_filters`, or the checkpoint belongs to another model, data, loss or
            precision.
    """
    options: dict[str, Any] = {}
    if checkpoint is not None:
        path = pathlib.Path(checkpoint)
        computed = f"{residual} {resolve_precision(precision)} {_described(loss, model)}"
        print_of = _fingerprint(model, data, batch_size, computed)
        if path.exists():
            options["known"] = _load(path, print_of)
        options["keep"] = _Keeper(path, print_of)
    scores = rank_with_options(
        model,
        data,
        loss,
        "oracle",
        "hutchinson",
        precision,
        1,
        None,
        batch_size,
        0,
        strategy,
        progress,
        options,
        residual,
    )
    if checkpoint is not None:
        pathlib.Path(checkpoint).unlink(missing_ok=True)
    return scores


class _Keeper:
    """Saves the vector of losses now and then."""

    def __init__(self, path: pathlib.Path, fingerprint: int) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._saved = time.monotonic()

    def __call__(self, losses: Floats) -> None:
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return
        with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
            np.savez(file, losses=losses, fingerprint=np.int64(self._fingerprint))
        self._saved = time.monotonic()


def _load(path: pathlib.Path, fingerprint: int) -> Floats:
    try:
        with np.load(path, allow_pickle=False) as archive:
            losses, found = archive["losses"], int(archive["fingerprint"])
    except Exception as error:  # damage surfaces as almost anything
        raise CorruptFileError(f"{path} is not a readable oracle checkpoint: {error}") from error
    if found != fingerprint:
        raise ValueError(
            "checkpoint must belong to the same model, data, loss and precision. Received: "
            f"{path}, of others; remove it to start again"
        )
    return losses


def _described(loss: Any, model: tf_keras.Model) -> str:
    """The losses with all their settings, and their factors where they are the compiled ones."""
    factors = compiled_weights(model) if loss is None else ()
    loss = getattr(model, "loss", None) if loss is None else loss
    settings = [
        tf_keras.losses.serialize(tf_keras.losses.get(each)) for each in tf.nest.flatten(loss)
    ]
    return f"{settings} {factors}"


def _fingerprint(model: tf_keras.Model, data: Any, batch_size: int | None, computed: str) -> int:
    value = zlib.crc32(computed.encode())
    for layer in find_prunable(model):
        value = zlib.crc32(layer.name.encode(), value)
    for weight in model.weights:
        value = zlib.crc32(np.ascontiguousarray(weight).tobytes(), value)
    for batch in HessianBatch(data, batch_size):
        value = zlib.crc32(str(batch.checksum()).encode(), value)
    return value
