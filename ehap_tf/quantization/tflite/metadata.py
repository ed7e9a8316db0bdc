"""What an application needs to know about a TFLite file, as JSON beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehap_tf.files import CorruptFileError, write_text
from ehap_tf.quantization.tflite.tflite_file import (
    TensorSpec,
    TFLiteFile,
    open_interpreter,
    signature,
    tensor_spec,
)

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What turns pixels from 0 to 255 into the model's input: (pixel / 255 - mean) / std.

    Attributes:
        mean: one value for each channel, or for all.
        std: likewise.
        bgr: whether the channels are blue, green, red, also in `mean` and `std`.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    bgr: bool = False


def metadata_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where the metadata of the file at `path` lie: `NAME.tflite.json`."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.json")


def write_metadata(
    file: TFLiteFile,
    path: str | os.PathLike[str],
    names: Sequence[str],
    normalization: Normalization | None = None,
    labels: Sequence[str] | None = None,
    labelled: int | None = None,
) -> pathlib.Path:
    """Writes what is known about `file` beside `path` and returns where.

    Under `inputs` and `outputs` lie all tensors, the outputs in the model's order: `model_name` is
    what the model calls them, `name` what the file does. `input` and `output` are those of
    `TFLiteFile`. An output that was compared with the model's has its own
    `agreement_with_qat_model`; `labelled_output` is the `model_name` of the one that `labels` are
    for.

    Args:
        file: what was verified; it need not lie at `path` yet.
        path: where it will.
        names: of the outputs, in the model's order.
        normalization: of the pixels, if it is not part of the model.
        labels: the classes' names.
        labelled: the number of the output that they are for.
    """
    inputs, outputs = signature(open_interpreter(file.path))
    agreements: list[dict[str, Any]] = [{} for _ in outputs]
    if file.agreements:
        agreements = [{"agreement_with_qat_model": share} for share in file.agreements]
    content: dict[str, Any] = {
        "format": FORMAT,
        "file": pathlib.Path(path).name,
        "bytes": file.bytes,
        "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest(),
        "input": _tensor(file.input),
        "output": _tensor(file.output),
        "inputs": [
            {"model_name": name, **_tensor(tensor_spec(details))}
            for name, details in inputs.items()
        ],
        "outputs": [
            {"model_name": name, **_tensor(tensor_spec(details)), **compared}
            for name, details, compared in zip(names, outputs, agreements, strict=True)
        ],
        "operators": dict(file.operators),
        "float_operators": list(file.float_operators),
        "difference_from_qat_model_in_steps": file.difference,
        "agreement_with_qat_model": file.agreement,
        "normalization": None,
        "labels": None if labels is None else [str(label) for label in labels],
    }
    if labelled is not None:
        content["labelled_output"] = names[labelled]
    if normalization is not None:
        content["normalization"] = {
            "mean": np.ravel(normalization.mean).astype(float).tolist(),
            "std": np.ravel(normalization.std).astype(float).tolist(),
            "formula": "(pixel / 255 - mean) / std",
            "channels": "BGR" if normalization.bgr else "RGB",
        }
    beside = metadata_path(path)
    write_text(beside, json.dumps(content, indent=2) + "\n")
    return beside


def read_metadata(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Reads the metadata of the TFLite file at `path`.

    Raises:
        FileNotFoundError: there are none.
        CorruptFileError: they are damaged, or belong to another file.
    """
    beside = metadata_path(path)
    if not beside.is_file():
        raise FileNotFoundError(f"there are no metadata at {str(beside)!r}.")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        expected = content["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{str(beside)!r} is damaged: {error}") from error
    if hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() != expected:
        raise CorruptFileError(f"{str(beside)!r} describes another file than {os.fspath(path)!r}.")
    return content


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {**dataclasses.asdict(spec), "shape": list(spec.shape)}
