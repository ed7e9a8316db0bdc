"""How long the operators of a TFLite file take on this machine, at other widths too.

This file needs numpy and ai-edge-litert alone. Copy it and a `.tflite` file to a Raspberry Pi or a
phone and run it there: `python operator_timing.py model_int8.tflite --output=table.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

FORMAT = "ehap_tf.LatencyTable/1"
ROUNDS = 9
"""Of timings, in each of which every file has its turn; the median of them counts."""

_STEP, _WIDTHS = 8, 5
"""Widths are multiples of the former, at most so many for each axis."""
_SECONDS = 2e-3
"""That a file runs for in each round."""
_MANY, _FEW, _LARGE = (2, 10), (1, 4), 2**18
"""Copies of an operator in the two files whose difference is timed; of one with outputs of more
bytes than the last there are fewer."""

_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_FIXED = (
    "RESHAPE",
    "TRANSPOSE",
    "STRIDED_SLICE",
    "SLICE",
    "GATHER",
    "PACK",
    "SPLIT",
    "BATCH_MATMUL",
)
"""Operators that are timed at the widths that they have in the file."""

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a file, its widths apart.

    Attributes:
        family: all about it but its widths, as text: two operators of one family take the same
            time at the same widths.
        widths: channels of its input and output, or of its output alone.
        model: the file.
        place: of the operator in it.
    """

    family: str
    widths: tuple[int, ...]
    model: Any
    place: int


def operators(path: str | os.PathLike[str]) -> list[Operator]:
    """The operators of a file, in its order.

    Raises:
        ValueError: the file has loops or conditions, or activations of 16 bits.
    """
    content = pathlib.Path(path).read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    if len(model.subgraphs) != 1:
        raise ValueError(
            f"{os.fspath(path)!r} has loops or conditions, whose operators run unknown times."
        )
    if any(tensor.type == schema.TensorType.INT16 for tensor in model.subgraphs[0].tensors):
        raise ValueError(
            f"{os.fspath(path)!r} has activations of 16 bits; those of 8 are timed alone. Measure "
            "the file as a whole, with measure_latency_ms."
        )
    return [_described(model, place) for place in range(len(model.subgraphs[0].operators))]


def _described(model: Any, place: int) -> Operator:
    graph = model.subgraphs[0]
    operator = graph.operators[place]
    kind = _kind(model, operator)
    activations = [i for i in operator.inputs if i >= 0 and not _is_constant(model, graph, i)]
    output = _shape(graph, operator.outputs[0])
    shapes = [_shape(graph, i) for i in activations]
    if kind in _KERNELS:
        kernel = _shape(graph, operator.inputs[1])
        read = shapes[-1][-1] if shapes else 0
        widths: tuple[int, ...] = (read, output[-1])
        if kind == "DEPTHWISE_CONV_2D":
            widths = (output[-1],)
        inner = {
            "kernel": list(kernel[1:3]),
            "groups": read // kernel[-1] if len(kernel) > 3 else 1,
        }
        if kind == "DEPTHWISE_CONV_2D":
            inner["groups"] = output[-1] // read
    elif kind in _FIXED or not output:
        widths, inner = (), {"inputs": [list(shape) for shape in shapes], "output": list(output)}
    else:
        widths, inner = (output[-1],), {"inputs": len(shapes)}
    about = {
        "kind": kind,
        "type": int(graph.tensors[operator.outputs[0]].type),
        "input": list(shapes[0][:-1]) if shapes and widths else [],
        "output": list(output[:-1]) if widths else [],
        "options": _options(operator),
        **inner,
    }
    return Operator(json.dumps(about, sort_keys=True), widths, model, place)


def time_operators(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Times the operators of a file on a grid of widths.

    An operator is timed by the difference of two files that hold few and many copies of it, each
    with weights of its own, so that what a call of the interpreter takes falls out. All files have
    a turn in each round, so that what else the machine does meanwhile hits all of them.

    Args:
        path: of an integer file.
        threads: of the interpreter.
        rounds: of timings.
        progress: called as `progress(files_timed, files, {})`.

    Returns:
        The table, as `LatencyTable.from_json` takes it.
    """
    found = operators(path)
    points: dict[tuple[str, tuple[int, ...]], Operator] = {}
    grids: dict[str, list[list[int]]] = {}
    for operator in found:
        grid = grids.setdefault(operator.family, [[] for _ in operator.widths])
        for axis, width in enumerate(operator.widths):
            grid[axis] = sorted({*grid[axis], *_grid(width)})
    for operator in found:
        for widths in _product(grids[operator.family]):
            points.setdefault((operator.family, widths), operator)
    pairs, untimed = {}, []
    for (family, widths), operator in points.items():
        copies = _FEW if _output_bytes(operator, widths) > _LARGE else _MANY
        try:
            pairs[family, widths] = (
                copies,
                tuple(_Timed(_repeated(operator, widths, count), threads) for count in copies),
            )
        except (ValueError, RuntimeError):
            # Not an operator that can stand alone at these widths: it counts as nothing.
            untimed.append(f"{json.loads(family)['kind']} of {'x'.join(map(str, widths))}")
    whole = _Timed(pathlib.Path(path).read_bytes(), threads)
    timed = [whole, *(file for _, files in pairs.values() for file in files)]
    for number in range(rounds):
        for place, file in enumerate(timed):
            file.turn()
            if progress and (place + 1) % 20 == 0:
                progress(number * len(timed) + place + 1, rounds * len(timed), {})
    if progress:
        progress(rounds * len(timed), rounds * len(timed), {})
    families: dict[str, Any] = {}
    for family, grid in grids.items():
        times = []
        for widths in _product(grid):
            copies, files = pairs.get((family, widths), ((0, 1), None))
            spread = files[1].seconds() - files[0].seconds() if files else 0.0
            times.append(max(1e3 * spread / (copies[1] - copies[0]), 0.0))
        families[family] = {"widths": grid, "ms": times}
    table = {
        "format": FORMAT,
        "device": device_name(),
        "threads": threads,
        "families": families,
        "constant_ms": 0.0,
        "untimed": untimed,
    }
    measured = 1e3 * whole.seconds()
    table["constant_ms"] = measured - predicted_ms(table, found)
    table["network_ms"] = measured
    return table


def predicted_ms(table: Mapping[str, Any], found: Sequence[Operator]) -> float:
    """What a table says of the operators of a file.

    Surgery may bring operators that the table does not have: where channels of a sum are set in
    place stands a 1x1 convolution, or a PAD. One takes the time of the nearest of its kind for as
    much work, or of the nearest without a kernel where there is none of its kind.

    Raises:
        KeyError: the table has no kernel of that kind; with its name.
    """
    total = float(table["constant_ms"])
    for operator in found:
        family, share = _nearest(table["families"], operator)
        grid = [np.asarray(axis, np.float64) for axis in family["widths"]]
        values = np.asarray(family["ms"], np.float64).reshape([len(axis) for axis in grid])
        # Kernels compute blocks of eight channels, of which the last may be partly empty.
        block = _STEP if json.loads(operator.family)["kind"] in _KERNELS else 1
        for axis, width in zip(grid, operator.widths, strict=True):
            full = width if width in axis else block * math.ceil(width / block)
            values = _between(axis, values, float(full))
        total += share * float(values)
    return total


def _nearest(families: Mapping[str, Any], operator: Operator) -> tuple[Any, float]:
    """The family to look an operator up in, and its work in units of that family's."""
    if operator.family in families:
        return families[operator.family], 1.0
    about = json.loads(operator.family)
    kind, work = about["kind"], _work(about)
    known = [
        (its, family)
        for text, family in families.items()
        if len(family["widths"]) == len(operator.widths)
        and ((its := json.loads(text))["kind"] == kind or not {kind, its["kind"]} & set(_KERNELS))
    ]
    if kind in _KERNELS and not known:
        raise KeyError(kind)
    if not known:
        return {"widths": [[1]] * len(operator.widths), "ms": [0.0]}, 0.0
    its, family = min(
        known, key=lambda pair: (pair[0]["kind"] != kind, abs(math.log(_work(pair[0]) / work)))
    )
    return family, work / _work(its)


def _work(about: Mapping[str, Any]) -> float:
    """Positions of the output times those of the kernel."""
    return float(math.prod(about["output"] or [1]) * math.prod(about.get("kernel", [1])))


def _between(axis: np.ndarray, values: np.ndarray, width: float) -> np.ndarray:
    """Linear interpolation along the first axis of `values`, and beyond its ends."""
    if len(axis) == 1:
        # In proportion: nothing else is known.
        return values[0] * (width / axis[0] if axis[0] else 1.0)
    right = int(np.clip(np.searchsorted(axis, width), 1, len(axis) - 1))
    share = (width - axis[right - 1]) / (axis[right] - axis[right - 1])
    return np.maximum(values[right - 1] + share * (values[right] - values[right - 1]), 0.0)


def device_name() -> str:
    """Of this machine, as people call it."""
    for file, start in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = pathlib.Path(file).read_text(errors="replace").strip("\0\n").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(start):
                return line.partition(":")[2].strip() if start else line
    return platform.processor() or platform.machine()


class _Timed:
    """A file in an interpreter, timed a little at a time."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for details in self._interpreter.get_input_details():
            noise = rng.integers(-100, 100, details["shape"]).astype(details["dtype"])
            self._interpreter.set_tensor(details["index"], noise)
        self._interpreter.invoke()
        self._times: list[float] = []
        self._calls = max(1, min(200, int(_SECONDS / self._once())))

    def _once(self) -> float:
        began = time.perf_counter()
        self._interpreter.invoke()
        return time.perf_counter() - began

    def turn(self) -> None:
        self._interpreter.invoke()
        began = time.perf_counter()
        for _ in range(self._calls):
            self._interpreter.invoke()
        self._times.append((time.perf_counter() - began) / self._calls)

    def seconds(self) -> float:
        return statistics.median(self._times)


def _grid(width: int) -> list[int]:
    """Widths up to one: multiples of eight, few of them."""
    if width <= _STEP:
        return [width]
    whole = width // _STEP
    wanted = {1, math.ceil(whole / 4), math.ceil(whole / 2), math.ceil(3 * whole / 4), whole}
    return sorted(
        {*(_STEP * one for one in (wanted if whole > _WIDTHS else range(1, whole + 1)))} | {width}
    )


def _product(grid: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for axis in grid:
        found = [(*start, width) for start in found for width in axis]
    return found


def _repeated(operator: Operator, widths: tuple[int, ...], copies: int) -> bytes:
    """A file with copies of one operator side by side, that read the same."""
    made = _Copies(operator, widths)
    for _ in range(copies):
        made.add_copy()
    return made.packed()


class _Copies:
    """A file in the making, with copies of one operator at other widths."""

    def __init__(self, operator: Operator, widths: tuple[int, ...]) -> None:
        self._operator, self._widths = operator, widths
        self._source, self._rng = operator.model.subgraphs[0], np.random.default_rng(0)
        self._one = self._source.operators[operator.place]
        self._kind = _kind(operator.model, self._one)
        self._written = widths[-1] if widths else None
        self._shared: dict[int, int] = {}
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.subgraphs = operator.model.version, [graph]
        model.operatorCodes = [operator.model.operatorCodes[self._one.opcodeIndex]]
        model.buffers, graph.tensors, graph.operators = [schema.BufferT()], [], []
        graph.inputs, graph.outputs, graph.name = [], [], b"main"
        self._model, self._graph = model, graph

    def add_copy(self) -> None:
        """One more operator, with constants and outputs of its own."""
        one, copy = self._one, schema.OperatorT()
        inputs = [self._input(slot, index) for slot, index in enumerate(map(int, one.inputs))]
        outputs = [self._output(index) for index in map(int, one.outputs)]
        copy.opcodeIndex, copy.inputs, copy.outputs = 0, inputs, outputs
        copy.builtinOptionsType, copy.builtinOptions = one.builtinOptionsType, one.builtinOptions
        self._graph.operators.append(copy)
        self._graph.outputs += outputs

    def packed(self) -> bytes:
        """The file."""
        self._graph.inputs = list(self._shared.values())
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _input(self, slot: int, index: int) -> int:
        """The place of the tensor that a copy reads at a slot; -1 for none."""
        if index < 0:
            return -1
        shape, kind = list(_shape(self._source, index)), self._kind
        if not _is_constant(self._operator.model, self._source, index):
            return self._read(index, shape)
        if kind in _KERNELS and slot in (1, 2) and (kind != "TRANSPOSE_CONV" or slot == 1):
            weights = _weights(self._operator, kind, slot, shape, self._widths, self._rng)
            return self._add(index, *weights)
        data = self._operator.model.buffers[self._source.tensors[index].buffer].data
        constant = np.asarray(data, np.uint8)
        if kind == "TRANSPOSE_CONV" and slot == 0:
            sizes = np.frombuffer(constant.tobytes(), np.int32).copy()
            sizes[-1] = self._written
            constant = sizes.view(np.uint8)
        return self._add(index, shape, constant, 0)

    def _read(self, index: int, shape: list[int]) -> int:
        """An input of the file, which all copies read."""
        if index not in self._shared:
            if shape and self._written is not None:
                read = self._widths[0] if len(self._widths) == 2 else None
                shape[-1] = _read_width(self._operator, read, self._written, shape[-1])
            self._shared[index] = self._add(index, shape, None, 0)
        return self._shared[index]

    def _output(self, index: int) -> int:
        shape = list(_shape(self._source, index))
        if shape and self._written is not None:
            shape[-1] = self._written
        return self._add(index, shape, None, 0)

    def _add(self, index: int, shape: Sequence[int], data: np.ndarray | None, channel: int) -> int:
        """A tensor like the one at `index`, of another shape."""
        old, tensor = self._source.tensors[index], schema.TensorT()
        tensor.shape, tensor.type = np.asarray(shape, np.int32), old.type
        tensor.name = f"{len(self._graph.tensors)}".encode()
        tensor.quantization = _widened(old.quantization, channel)
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def _read_width(operator: Operator, read: int | None, written: int, width: int) -> int:
    if read is not None:
        return read
    about = json.loads(operator.family)
    if about["kind"] == "DEPTHWISE_CONV_2D":
        return max(1, written // about["groups"])
    # A constant of one channel for all stays so.
    return written if width != 1 else 1


def _weights(
    operator: Operator,
    kind: str,
    slot: int,
    shape: list[int],
    widths: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[list[int], np.ndarray, int]:
    """Shape, random content and scales of a kernel (slot 1) or bias (slot 2) at other widths."""
    written = widths[-1]
    if slot == 2:
        return [written], np.zeros(written, np.int32), written
    if kind == "DEPTHWISE_CONV_2D":
        shape[-1] = written
    else:
        groups = json.loads(operator.family)["groups"]
        shape[0], shape[-1] = written, max(1, widths[0] // groups)
    return shape, rng.integers(-127, 128, shape).astype(np.int8), written


def _widened(old: Any, channels: int) -> Any:
    """Scales for so many channels, where there was one for each."""
    if old is None or not channels or old.scale is None or len(old.scale) < 2:
        return old
    new = schema.QuantizationParametersT()
    new.quantizedDimension = old.quantizedDimension
    new.scale = np.resize(np.asarray(old.scale, np.float32), channels)
    new.zeroPoint = np.resize(np.asarray(old.zeroPoint, np.int64), channels)
    return new


def _output_bytes(operator: Operator, widths: tuple[int, ...]) -> int:
    graph = operator.model.subgraphs[0]
    shape = _shape(graph, graph.operators[operator.place].outputs[0])
    return math.prod(shape[:-1]) * (widths[-1] if widths else (shape or (1,))[-1])


def _options(operator: Any) -> dict[str, Any]:
    """The options of an operator that are plain numbers, its activation aside, which is free."""
    options = operator.builtinOptions
    found = {} if options is None else vars(options)
    return {
        name: value if isinstance(value, int | float | bool) else [int(one) for one in value]
        for name, value in sorted(found.items())
        if name != "fusedActivationFunction"
        and isinstance(value, int | float | bool | np.ndarray | list)
    }


def _kind(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return _NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")


def _is_constant(model: Any, graph: Any, index: int) -> bool:
    data = model.buffers[graph.tensors[index].buffer].data
    return data is not None and len(data) > 0


def _shape(graph: Any, index: int) -> tuple[int, ...]:
    shape = graph.tensors[int(index)].shape
    return () if shape is None else tuple(int(size) for size in shape)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a .tflite file")
    parser.add_argument("--output", default="table.json", help="default table.json")
    parser.add_argument("--threads", type=int, default=1, help="of the interpreter; default 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    options = parser.parse_args(arguments)

    def show(done: int, total: int, figures: Mapping[str, float]) -> None:
        del figures
        print(f"\r{done}/{total} timings", end="", file=sys.stderr, flush=True)

    table = time_operators(
        options.file, threads=options.threads, rounds=options.rounds, progress=show
    )
    pathlib.Path(options.output).write_text(json.dumps(table, indent=1))
    print(f"\n{table['device']}: {table['network_ms']:.3f} ms, {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
