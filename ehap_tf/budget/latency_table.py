"""How long operators take on a device, as a table that travels, and what that says of a network."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

from ehap_tf.budget.operator_timing import (
    FORMAT,
    ROUNDS,
    operators,
    predicted_ms,
    time_operators,
)
from ehap_tf.files import json_fields
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.quantization import noise_file


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of operators at a grid of widths on one device.

    Made by `measure_operators`, or on the device by `operator_timing.py`, a script that needs
    numpy and ai-edge-litert alone.

    Attributes:
        device: its name.
        threads: of the interpreter.
        network_ms: of the network that the table was made for.
        constant_ms: of a call beside its operators.
        families: operator without its widths -> the widths of its grid, and the milliseconds.
        untimed: operators that could not run alone, and count as nothing.
    """

    device: str
    threads: int
    network_ms: float
    constant_ms: float
    families: Mapping[str, Mapping[str, Any]]
    untimed: Sequence[str] = ()

    def predict_ms(self, path: str | os.PathLike[str]) -> float:
        """The latency of a TFLite file: of this network, or of one that was pruned from it.

        Raises:
            ValueError: the table has no operator of such a kind; with its name.
        """
        try:
            return predicted_ms(dataclasses.asdict(self), operators(path))
        except KeyError as error:
            raise ValueError(
                f"the table of {self.device!r} has no operator {error.args[0]}: it was made for "
                "another network. Make one for this, or for the one that it was pruned from."
            ) from None

    def to_json(self) -> str:
        """The table as text that `from_json` reads back."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Reads what `to_json` or the script on a device wrote.

        Raises:
            ValueError: the text is no such table.
        """
        fields = json_fields(text, FORMAT, "latency table")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a latency table: {error}") from None


def measure_operators(
    model: tf_keras.Model | str | os.PathLike[str],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    progress: ProgressCallback = no_progress,
) -> LatencyTable:
    """Times the operators of a network's integer file on this machine, at narrower widths too.

    Each operator is timed by itself, in files of several copies of it, at multiples of eight
    channels, at most five for each axis up to the width that it has; between them a prediction
    interpolates. ResNet-32 takes ten seconds.

    Args:
        model: as for `quantize`, or the path of its integer file.
        threads: of the interpreter.
        rounds: of timings, of which the median counts.
        progress: called as `progress(timings_done, timings, {})`.

    Raises:
        TypeError, ValueError: as in `quantize`; the file has loops or conditions.

    Example:
        >>> table = ehap.measure_operators("model_int8.tflite")
        >>> table.predict_ms("pruned_int8.tflite")
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".tflite"):
            path = pathlib.Path(model)
        else:
            path = noise_file(model, pathlib.Path(folder) / "model.tflite")
        table = time_operators(path, threads=threads, rounds=rounds, progress=progress)
    del table["format"]
    return LatencyTable(**table)
