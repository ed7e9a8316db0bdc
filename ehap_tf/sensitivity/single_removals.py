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

from ehap_tf.files import atomic_path, reading
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.sensitivity.criteria.request import RankOptions, Request
from ehap_tf.sensitivity.filter_ranking import rank_with_options
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.network.network import Network, agree
from ehap_tf.sensitivity.scores import FilterScores
from ehap_tf.sensitivity.statistics import Floats

SAVE_SECONDS = 10.0

_ORIGIN = ("fingerprint", "outputs", "values")
"""What the file of a checkpoint has besides the losses."""

_EXAMPLES, _OUTPUTS = 32, 1_000_000
"""At how many examples, and numbers in their outputs, a model and a loss are told from others."""

_ROUNDING = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.05}
"""How far two passes through one network may be apart, cut into batches in other ways."""


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

    One forward pass over the data per filter.

    Args:
        model: Functional or Sequential.
        data: as for `rank_filters`.
        loss: as for `rank_filters`.
        precision: "fp32", "fp16", "bf16" or "auto".
        batch_size: examples computed at once.
        checkpoint: a `.npz` file for what is measured so far; a later call with the same model,
            data, loss and precision goes on from it, whatever its `batch_size`. It is removed when
            all is done.
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
    further: dict[str, Any] = {}
    if checkpoint is not None:
        further["checkpoint"] = _Checkpoint(pathlib.Path(checkpoint))
    options = RankOptions(
        criterion="oracle", precision=precision, probes=1, batch_size=batch_size,
        strategy=strategy, progress=progress, residual=residual, options=further,
    )  # fmt: skip
    scores = rank_with_options(model, data, loss, options)
    if checkpoint is not None:
        pathlib.Path(checkpoint).unlink(missing_ok=True)
    return scores


class _Checkpoint:
    """The losses measured so far, in a file with what they depend on.

    A loss function tells no more of itself than its name, and weights nothing of the activations
    between them. The file has outputs of the network for a few examples and the loss at them: they
    are the same network and loss if they give the same there.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._saved = time.monotonic()
        self._depends_on: dict[str, Any] = {}

    def begin(self, request: Request, network: Network) -> Floats | None:
        """The losses in the file; None where there is no file."""
        fingerprint = np.int64(_fingerprint(request, network))
        if not self._path.exists():
            outputs = _first_outputs(network, request.batch)
            values = _loss_at(outputs, network, request.batch)
            self._depends_on = dict(zip(_ORIGIN, (fingerprint, outputs, values), strict=True))
            return None
        losses, *origin = _read(self._path)
        found, outputs, values = origin
        if (
            found != fingerprint
            or not _gives(network, request, outputs)
            or not agree(values, _loss_at(outputs, network, request.batch))
        ):
            raise ValueError(
                "checkpoint must belong to the same model, data, loss and precision. Received: "
                f"{self._path}, of others; remove it to start again"
            )
        self._depends_on = dict(zip(_ORIGIN, origin, strict=True))
        return losses

    def keep(self, losses: Floats) -> None:
        """Saves the losses now and then."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return
        with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
            np.savez(file, losses=losses, **self._depends_on)
        self._saved = time.monotonic()


def _read(path: pathlib.Path) -> list[np.ndarray]:
    advice = "; remove it to start again"
    with (
        reading(path, "an oracle checkpoint", advice),
        np.load(path, allow_pickle=False) as archive,
    ):
        return [archive[name] for name in ("losses", *_ORIGIN)]


def _fingerprint(request: Request, network: Network) -> int:
    """Of all that the losses depend on but the loss function."""
    value = zlib.crc32(f"{network.residual} {request.precision}".encode())
    for layer in request.layers:
        value = zlib.crc32(layer.name.encode(), value)
    for weight in request.model.weights:
        value = zlib.crc32(np.ascontiguousarray(weight).tobytes(), value)
    return zlib.crc32(str(request.batch.checksum()).encode(), value)


def _first_outputs(network: Network, batch: HessianBatch) -> np.ndarray:
    count = min(_EXAMPLES, max(1, _OUTPUTS // network.output_size))
    pieces = next(batch.blocks(count))
    return np.concatenate([network.forward(piece.inputs).numpy() for piece in pieces])


def _gives(network: Network, request: Request, outputs: np.ndarray) -> bool:
    """Whether the network gives these outputs, but for rounding in its precision."""
    own = _first_outputs(network, request.batch)
    if own.shape != outputs.shape:
        return False
    apart = float(np.linalg.norm(own - outputs))
    return apart <= _ROUNDING[request.precision] * float(np.linalg.norm(outputs))


def _loss_at(outputs: np.ndarray, network: Network, batch: HessianBatch) -> np.ndarray:
    """The loss that each of the first examples has with the given outputs."""
    values = []
    for piece in next(batch.blocks(len(outputs))):
        _, labels, weights, first = network.tensors(piece)
        own = tf.constant(outputs[int(first) : int(first) + len(piece)], network.dtype)
        values.append(network.loss_values(labels, own, tf.ones_like(weights)))
    return np.concatenate(values)
