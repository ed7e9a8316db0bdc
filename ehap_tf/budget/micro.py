"""A TFLite file in TensorFlow Lite Micro's own interpreter, as on a microcontroller."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from ehap_tf.models.keras3 import either_keras
from ehap_tf.native_output import native_errors_in
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.quantization import (
    TFLiteModel,
    classes,
    distinct_operators,
    operator_alone,
    parse_tflite,
    plan_arena,
)

_UNKNOWN = r"Didn't find op|Failed to get registration"
"""What the interpreter says of an operator that it does not have."""
_LARGEST_INPUT = 20_000
_FARTHEST = 64.0
"""Steps of 16 bits, of which 256 are one of 8: kernels interpolate in tables of their own."""
_ROOM = 2**18
"""Bytes of the arena that is offered, beyond twice of what is planned."""


@dataclasses.dataclass(frozen=True)
class MicroCheck:
    """What TensorFlow Lite Micro makes of a TFLite file.

    Attributes:
        missing: operators that its interpreter lacks, some of them for 16-bit activations alone;
            empty where the file runs.
        arena_bytes: of the tensor arena, as the interpreter reports it (on this machine, of 64
            bits); None where operators are missing.
        examples: that both interpreters have run.
        equal: share of them whose outputs are those of LiteRT's reference kernels, bit for bit;
            None where nothing was run.
        largest_difference: of any number of their outputs, in steps (as it is of floats).
        agreement: share of them of the same class, of several outputs the smallest; None likewise,
            and for single numbers, which are no classes.
        equal_numbers: share of the numbers in the outputs that are equal; likewise.
    """

    missing: tuple[str, ...]
    arena_bytes: int | None = None
    examples: int = 0
    equal: float | None = None
    largest_difference: float | None = None
    agreement: float | None = None
    equal_numbers: float | None = None


@either_keras(None)
def verify_micro(
    path: str | os.PathLike[str],
    data: Any,
    *,
    examples: int = 200,
    progress: ProgressCallback = no_progress,
) -> MicroCheck:
    """Runs a TFLite file in TensorFlow Lite Micro's interpreter, beside LiteRT's reference kernels.

    Needs the extra `[micro]`: `pip install 'ehap_tf[micro]'`.

    Args:
        path: of the file.
        data: as for `evaluate_tflite`; labels are not looked at, and need not be there.
        examples: how many at most.
        progress: called as `progress(examples_done, examples, {})`.

    Raises:
        ImportError: the extra is not installed.
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
        TypeError: the data is of another form, such as a generator.
        ValueError: `examples` is not positive, or the data does not fit the file.

    Example:
        >>> check = ehap.verify_micro("model_int8.tflite", test_images)
        >>> check.missing, check.arena_bytes, check.equal
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1. Received: {examples!r}")
    missing = missing_micro_operators(path)
    if missing:
        return MicroCheck(missing)
    reference = TFLiteModel(path, reference=True)
    micro = _MicroModel(path, reference)
    equal: list[float] = []
    largest = 0.0
    same: list[list[bool]] = []
    for example in _examples(reference, data, examples):
        received, expected = micro.run(*example), reference.run(*example)
        pairs = list(zip(received, expected, strict=True))
        alike = np.concatenate([np.ravel(one == other) for one, other in pairs])
        equal.append(float(alike.mean()))
        apart = (np.abs(one.astype(np.float64) - other).max(initial=0.0) for one, other in pairs)
        largest = max(largest, *map(float, apart))
        same.append(
            [
                bool((classes(one[None]) == classes(other[None])).all())
                for one, other in pairs
                if other.ndim and other.shape[-1] > 1
            ]
        )
        progress(len(equal), examples, {})
    agreement = min(np.mean(same, axis=0), default=None) if same[0] else None
    return MicroCheck(
        missing=(),
        arena_bytes=micro.arena_bytes(),
        examples=len(equal),
        equal=float(np.mean(np.equal(equal, 1.0))),
        largest_difference=largest,
        agreement=None if agreement is None else float(agreement),
        equal_numbers=float(np.mean(equal)),
    )


def missing_micro_operators(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The operators of a TFLite file that TensorFlow Lite Micro's interpreter does not have.

    The interpreter names the first; here it is asked for each kind alone.

    Raises:
        ImportError, FileNotFoundError, CorruptFileError: as in `verify_micro`.
    """
    require_micro()
    model = parse_tflite(path)
    missing: dict[str, None] = {}
    for name, types, graph, operator in distinct_operators(model):
        if name in missing:
            continue
        alone = operator_alone(model, graph, operator)
        said, interpreter = _interpreter(alone, 2**24)
        if interpreter is None and re.search(_UNKNOWN, said):
            missing[name] = None
        elif schema.TensorType.INT16 in types and not _computes(interpreter, alone):
            missing[f"{name} of 16 bits"] = None
    return tuple(missing)


def _computes(interpreter: Any, content: bytes) -> bool:
    """Whether a file of one operator runs there, and computes what LiteRT's reference kernel does.

    Some kernels of 16 bits are there for 8 bits alone, or read what they have not written.
    """
    if interpreter is None:
        return False
    reference = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    reference.allocate_tensors()
    rng = np.random.default_rng(0)
    for place, details in enumerate(reference.get_input_details()):
        # Other integers are places, of which there is one at least.
        low, high = (-_LARGEST_INPUT, _LARGEST_INPUT) if details["dtype"] == np.int16 else (0, 1)
        value = rng.integers(low, high, details["shape"]).astype(details["dtype"])
        reference.set_tensor(details["index"], value)
        interpreter.set_input(value, place)
    with _native_errors():
        try:
            reference.invoke()
            interpreter.invoke()
        except RuntimeError:
            return False
    return all(
        np.allclose(
            interpreter.get_output(place).astype(np.float64),
            reference.get_tensor(details["index"]),
            rtol=0.0,
            atol=_FARTHEST,
        )
        for place, details in enumerate(reference.get_output_details())
    )


def require_micro() -> Any:
    """The module of TensorFlow Lite Micro's interpreter.

    Raises:
        ImportError: it is not installed; with the command that installs it.
    """
    try:
        return importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    except ImportError as error:
        raise ImportError(
            "TensorFlow Lite Micro's interpreter is not installed: pip install 'ehap_tf[micro]'"
        ) from error


class _MicroModel:
    """The file in TensorFlow Lite Micro, its inputs and outputs in the order of `reference`."""

    def __init__(self, path: str | os.PathLike[str], reference: TFLiteModel) -> None:
        plan = plan_arena(parse_tflite(path))
        content = pathlib.Path(path).read_bytes()
        size = 2 * (plan.arena_bytes if plan else 10 * len(content)) + _ROOM
        said, self._interpreter = _interpreter(content, size)
        if self._interpreter is None:
            raise ValueError(
                f"TensorFlow Lite Micro cannot run {os.fspath(path)!r}, though it has the "
                f"operators: {said.strip()}"
            )
        self._inputs, self._outputs = reference.input_places, reference.output_places

    def run(self, *example: np.ndarray) -> list[np.ndarray]:
        """The outputs of one example, without a batch axis."""
        for place, value in zip(self._inputs, example, strict=True):
            self._interpreter.set_input(value[None], place)
        self._interpreter.invoke()
        return [self._interpreter.get_output(place)[0] for place in self._outputs]

    def arena_bytes(self) -> int:
        """As the interpreter reports it, after it has run."""
        with _native_errors() as said:
            self._interpreter.print_allocations()
            text = said()
        found = re.search(r"Arena allocation total (\d+) bytes", text)
        if found is None:
            raise RuntimeError(f"the interpreter does not say what it has allocated: {text}")
        return int(found.group(1))


def _interpreter(content: bytes, arena_bytes: int) -> tuple[str, Any]:
    """What it says, and an interpreter; None where it cannot run the file."""
    module = require_micro()
    with _native_errors() as said:
        try:
            return "", module.Interpreter.from_bytes(content, arena_size=arena_bytes)
        except RuntimeError as error:
            return f"{error}. {said()}", None


@contextlib.contextmanager
def _native_errors() -> Iterator[Callable[[], str]]:
    """Keeps what C++ writes inside the block, and gives a function that reads it there."""
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        with native_errors_in(file):
            yield said


def _examples(model: TFLiteModel, data: Any, examples: int) -> Iterator[list[np.ndarray]]:
    """Examples one by one, as the file takes them."""
    left = examples
    for x in _batches(data):
        first = {name: array[:left] for name, array in model.by_name(x).items()}
        for example in zip(*model.as_integers(first), strict=True):
            yield list(example)
            left -= 1
        if not left:
            return
    if left == examples:
        raise ValueError("data is empty.")


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        for element in data:
            x = element[0] if isinstance(element, tuple | list) else element
            yield tf.nest.map_structure(np.asarray, x)
    elif isinstance(data, tuple | list):
        yield data[0]
    elif isinstance(data, Mapping) or hasattr(data, "shape"):
        yield data
    else:
        raise TypeError(
            "data must be (x, y) or (x,) arrays, an array, or a batched tf.data.Dataset. "
            f"Received: {type(data).__name__}"
        )
