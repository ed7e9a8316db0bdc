"""Where a pruning schedule stands, in one file without pickle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehap_tf.channels import Flags
from ehap_tf.files import arrays_from, arrays_to_bytes, reading, write_bytes

_FORMAT = "ehap_tf.PruningState/2"


@dataclasses.dataclass(frozen=True)
class PruningState:
    """All that the next pruning step depends on, besides the settings.

    Attributes:
        settings: of the callback; another schedule must not take this state up.
        alive: layer path -> for each filter whether it stays.
        squares: squared gradients on gates since the last step, added up.
        minibatches: over how many of them.
        since_step: minibatches since the last step, those that were left out included.
        minibatch: minibatches in all.
        history: one dict a step: minibatch, filters, params, macs.
        epoch: whole epochs trained.
        weights: of the model; empty when the state was taken without them.
        optimizer: variables of the optimizer, its learning rate included; the same.
    """

    settings: Mapping[str, Any]
    alive: Mapping[str, Flags]
    squares: np.ndarray
    minibatches: int
    since_step: int
    minibatch: int
    history: tuple[dict[str, float], ...]
    epoch: int
    weights: Sequence[np.ndarray] = ()
    optimizer: Sequence[np.ndarray] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        header = {
            "format": _FORMAT,
            "settings": dict(self.settings),
            "layers": list(self.alive),
            "minibatches": self.minibatches,
            "since_step": self.since_step,
            "minibatch": self.minibatch,
            "history": self.history,
            "epoch": self.epoch,
            "weights": len(self.weights),
            "optimizer": len(self.optimizer),
        }
        arrays = {"squares": self.squares}
        lists = {"alive": self.alive.values(), "weights": self.weights, "optimizer": self.optimizer}
        for kind, values in lists.items():
            arrays |= {f"{kind}/{i}": value for i, value in enumerate(values)}
        write_bytes(path, arrays_to_bytes(header, arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningState:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptFileError: the file is damaged, of another version, or something else.
        """
        with reading(path, "a pruning checkpoint"):
            header, arrays = arrays_from(path)
            found = header.pop("format")
            if found != _FORMAT:
                raise ValueError(
                    f"its format must be {_FORMAT!r}. Received: {found!r}; remove the file to "
                    "start again"
                )
            layers = header.pop("layers")
            header["alive"] = {name: arrays[f"alive/{i}"] for i, name in enumerate(layers)}
            header["squares"] = arrays["squares"]
            header["history"] = tuple(header["history"])
            for kind in ("weights", "optimizer"):
                header[kind] = [arrays[f"{kind}/{i}"] for i in range(header[kind])]
            return cls(**header)
