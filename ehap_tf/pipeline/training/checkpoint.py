"""The state of a training after a whole epoch, in one file without pickle."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ehap_tf.files import arrays_from, arrays_to_bytes, reading, write_bytes

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Everything that the next epoch depends on, besides the recipe.

    Attributes:
        epoch: number of whole epochs trained.
        weights: the model's weights, in the order of `model.get_weights()`.
        optimizer: the optimizer's variables (step counter, momenta, loss scale), in its order.
        best_epoch: after which epoch the validation accuracy was highest; 0 before the first.
        best_accuracy: that accuracy; -1 before the first.
        history: one dict of figures per epoch.
        settings: what the training was started with; another training must not take this up.
    """

    epoch: int
    weights: Sequence[np.ndarray]
    optimizer: Sequence[np.ndarray]
    best_epoch: int
    best_accuracy: float
    history: tuple[dict[str, float], ...]
    settings: dict[str, Any]

    def save(self, *paths: str | os.PathLike[str]) -> None:
        """Writes the state to each of `paths` in turn, each time atomically."""
        content = self.to_bytes()
        for path in paths:
            write_bytes(path, content)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        header = {
            "format": FORMAT,
            "epoch": self.epoch,
            "weights": len(self.weights),
            "optimizer": len(self.optimizer),
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "history": self.history,
            "settings": self.settings,
        }
        arrays = {
            f"{kind}/{index}": _plain(array)
            for kind in ("weights", "optimizer")
            for index, array in enumerate(getattr(self, kind))
        }
        return arrays_to_bytes(header, arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> TrainingState:
        """The inverse of `to_bytes`."""
        return cls._read(io.BytesIO(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingState:
        """Reads what `save` wrote.

        Raises:
            CorruptFileError: the file is truncated, damaged, or something else.
            FileNotFoundError: there is no file.
        """
        with reading(path, "a checkpoint"):
            return cls._read(path)

    @classmethod
    def _read(cls, source: Any) -> TrainingState:
        header, arrays = arrays_from(source)
        if header.pop("format") != FORMAT:
            raise ValueError("unknown format")
        for kind in ("weights", "optimizer"):
            header[kind] = [arrays[f"{kind}/{i}"] for i in range(header[kind])]
        header["history"] = tuple(header["history"])
        return cls(**header)


def _plain(array: np.ndarray) -> np.ndarray:
    # npz cannot store bfloat16; float32 holds each of its values exactly.
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)
