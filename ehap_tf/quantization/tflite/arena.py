"""How much working memory a TFLite file needs on a microcontroller."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16
"""Of a tensor in the arena, in bytes."""

TENSOR_BYTES = 24
OPERATOR_BYTES = 150
ENDS_BYTES = 96
CHANNEL_BYTES = 8
INTERPRETER_BYTES = 570
"""What TensorFlow Lite Micro keeps beside the tensors on a 64-bit machine: for each tensor; for
each operator (its node, and what its kernel prepares); for each input and output of the file; for
each output channel with a scale of its own (a multiplier and a shift); once."""

_SIZES = {
    "BOOL": 1, "INT4": 0.5, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FLOAT16": 2,
    "INT32": 4, "UINT32": 4, "FLOAT32": 4, "INT64": 8, "UINT64": 8, "FLOAT64": 8,
}  # fmt: skip
_TYPE_SIZES = {getattr(schema.TensorType, name): size for name, size in _SIZES.items()}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A tensor that is computed: where in time it is needed.

    Attributes:
        bytes: of memory.
        first: the number of the operator that writes it.
        last: of the last that reads it.
    """

    bytes: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class ArenaPlan:
    """The working memory of a TFLite file.

    Attributes:
        peak_bytes: of the tensors that are alive at once, at most: no memory plan needs less.
        tensor_bytes: of the plan that TensorFlow Lite Micro makes: tensors from the largest to the
            smallest, each at the lowest place that is free as long as it lives.
        arena_bytes: `tensor_bytes`, and what its interpreter keeps; on a 64-bit machine, less on a
            microcontroller.
    """

    peak_bytes: int
    tensor_bytes: int
    arena_bytes: int


def plan_arena(model: Any) -> ArenaPlan | None:
    """Plans the memory of a parsed TFLite file; None where a size is only known when it runs."""
    tensors = heads = peaks = operators = channels = 0
    for graph in model.subgraphs:
        buffers = _buffers(model, graph)
        if buffers is None:
            return None
        heads += greedy_bytes(buffers)
        peaks += peak_bytes(buffers)
        tensors += len(graph.tensors)
        operators += len(graph.operators)
        channels += _channels(graph)
    first = model.subgraphs[0]
    kept = (
        INTERPRETER_BYTES
        + TENSOR_BYTES * tensors
        + OPERATOR_BYTES * operators
        + ENDS_BYTES * (len(first.inputs) + len(first.outputs))
        + CHANNEL_BYTES * channels
    )
    return ArenaPlan(peaks, heads, heads + _aligned(kept))


def peak_bytes(buffers: Sequence[Buffer]) -> int:
    """The largest sum of bytes that are alive at once."""
    steps: collections.Counter[int] = collections.Counter()
    for buffer in buffers:
        steps[buffer.first] += buffer.bytes
        steps[buffer.last + 1] -= buffer.bytes
    return int(max(np.cumsum([steps[step] for step in sorted(steps)]), default=0))


def greedy_bytes(buffers: Iterable[Buffer]) -> int:
    """Bytes of the greedy plan: the largest first, each at the lowest place that is free."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda buffer: -buffer.bytes):
        offset = 0
        for start, other in sorted(placed, key=lambda place: place[0]):
            if other.first > buffer.last or other.last < buffer.first:
                continue
            if start - offset >= buffer.bytes:
                break
            offset = max(offset, start + other.bytes)
        placed.append((offset, buffer))
    return max((offset + buffer.bytes for offset, buffer in placed), default=0)


def _buffers(model: Any, graph: Any) -> list[Buffer] | None:
    """The tensors that are computed, and what operators need while they run."""
    first = {int(index): 0 for index in graph.inputs}
    last = dict(first)
    scratch: list[Buffer] = []
    for step, operator in enumerate(graph.operators):
        for index in operator.inputs:
            if int(index) in first:
                last[int(index)] = step
        for index in map(int, operator.outputs):
            first[index] = last[index] = step
        if _is_transposed(model, operator):
            # Sums of 32 bits, of which the output is made when the last kernel has been added.
            size = _bytes(graph.tensors[operator.outputs[0]])
            scratch.append(Buffer(_aligned(4 * (size or 0)), step, step))
    last |= {int(index): len(graph.operators) for index in graph.outputs}
    found: list[Buffer] = []
    # Of tensors of one size the runtime places the last first.
    for index, start in sorted(first.items(), reverse=True):
        size = _bytes(graph.tensors[index])
        if size is None:
            return None
        found.append(Buffer(_aligned(size), start, last[index]))
    return found + scratch


def _bytes(tensor: Any) -> int | None:
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    if tensor.type not in _TYPE_SIZES or any(size < 0 for size in shape):
        return None
    return int(np.ceil(np.prod(shape, dtype=np.int64) * _TYPE_SIZES[tensor.type]))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _is_transposed(model: Any, operator: Any) -> bool:
    code = model.operatorCodes[operator.opcodeIndex]
    return code.builtinCode == schema.BuiltinOperator.TRANSPOSE_CONV


def _channels(graph: Any) -> int:
    """Output channels with a scale of their own, of all kernels, as often as they are read."""
    count = 0
    for operator in graph.operators:
        scales = [
            len(graph.tensors[index].quantization.scale)
            for index in map(int, operator.inputs)
            if index >= 0
            and graph.tensors[index].quantization is not None
            and graph.tensors[index].quantization.scale is not None
        ]
        count += max((number for number in scales if number > 1), default=0)
    return count
