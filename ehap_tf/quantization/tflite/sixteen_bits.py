"""A file of 8-bit activations as one of 16-bit ones with the same weights, TFLite's 16x8 mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from ehap_tf.native_output import native_errors_kept
from ehap_tf.quantization.plan.quantizers import finer_step
from ehap_tf.quantization.tflite.tflite_file import (
    distinct_operators,
    is_constant,
    operator_alone,
    operator_name,
    parsed,
    serialized,
)

_WITH_WEIGHTS = {
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "PRELU": None,
    "TRANSPOSE_CONV": 3,
}
"""Operators with weights of 8 bits, which are their input number 1, and the place of the bias."""
_WRONG = ("RSQRT",)
"""Operators whose kernel for 16 bits runs and is wrong: this one where its input is below a few
hundred steps (LiteRT 2.3)."""
FARTHEST = 1.1
"""Steps of 8 bits from a constant to what it was rounded to: a whole one at the end of a range."""
_FINER = 256
"""Steps of 16 bits in one of 8, with the zero point in the middle."""


def with_sixteen_bit_activations(content: bytes, exact: Sequence[np.ndarray] = ()) -> bytes:
    """Gives every activation 16 bits and the zero point 0.

    The converter takes fake quantization of 16 bits, but no kernel for it. It has written 8 bits,
    whose range is that of the 16-bit integers (`sixteen_bit_step`): scales become finer, biases
    64-bit integers in the finer unit, and other constants 16-bit integers. The weights of
    convolutions and Dense layers stay.

    Args:
        content: of a full-integer TFLite file.
        exact: constants before the converter rounded them, in any order and shape.
    """
    model = parsed(content)
    for graph in model.subgraphs:
        kernels, biases = _constants(model, graph)
        for index, tensor in enumerate(graph.tensors):
            if index in biases:
                _widen_bias(model, tensor)
            elif tensor.type == schema.TensorType.INT8 and index not in kernels:
                _widen(model, tensor, exact)
        for operator in graph.operators:
            if hasattr(operator.builtinOptions, "potScaleInt16"):
                # Scales are any numbers, and not powers of two, which is the default there.
                operator.builtinOptions.potScaleInt16 = False
    _drop_unused(model)
    return serialized(model)


def missing_kernels(content: bytes) -> tuple[str, ...]:
    """The operators of a file that LiteRT has, but not for 16-bit integers.

    Each is tried alone.
    """
    model = parsed(content)
    missing: dict[str, None] = {}
    for name, types, graph, operator in distinct_operators(model):
        if schema.TensorType.INT16 not in types or name in missing:
            continue
        if name in _WRONG or not _runs(operator_alone(model, graph, operator)):
            missing[name] = None
    return tuple(missing)


def _constants(model: Any, graph: Any) -> tuple[set[int], set[int]]:
    """The tensors that are weights of products, and those that are their biases."""
    kernels, biases = set(), set()
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name not in _WITH_WEIGHTS or not is_constant(model, graph.tensors[operator.inputs[1]]):
            continue
        kernels.add(int(operator.inputs[1]))
        place = _WITH_WEIGHTS[name]
        if place and len(operator.inputs) > place and operator.inputs[place] >= 0:
            biases.add(int(operator.inputs[place]))
    integer = {i for i in biases if graph.tensors[i].type == schema.TensorType.INT32}
    return kernels, integer


def _widen_bias(model: Any, tensor: Any) -> None:
    accumulators = _read(model, tensor, np.int32).astype(np.int64) * _FINER
    tensor.type = schema.TensorType.INT64
    scale = np.asarray(tensor.quantization.scale, np.float64) / _FINER
    tensor.quantization.scale = scale.astype(np.float32)
    _write(model, tensor, accumulators)


def _widen(model: Any, tensor: Any, exact: Sequence[np.ndarray]) -> None:
    """16 bits for an activation, or for a constant, which may have to have the scale of one."""
    tensor.type = schema.TensorType.INT16
    grid = tensor.quantization
    if grid is None or grid.scale is None:
        return
    (scale,), (zero_point,) = grid.scale, grid.zeroPoint
    step = finer_step(float(scale), float(zero_point))
    if is_constant(model, tensor):
        integers = _read(model, tensor, np.int8).astype(np.float64) - float(zero_point)
        values = _nearest(integers * float(scale), float(scale), exact)
        wide = np.clip(np.rint(values / step), -32768, 32767)
        _write(model, tensor, wide.astype(np.int16))
    grid.scale = np.asarray([step], np.float32)
    grid.zeroPoint = np.zeros(1, np.int64)


def _nearest(rounded: np.ndarray, scale: float, exact: Sequence[np.ndarray]) -> np.ndarray:
    """The constant that was rounded so; what was rounded where there is none."""
    best, distance = rounded, FARTHEST * scale
    for constant in exact:
        if constant.size == rounded.size:
            flat = constant.ravel().astype(np.float64)
            farthest = float(np.abs(flat - rounded).max(initial=0.0))
            if farthest < distance:
                best, distance = flat, farthest
    return best


def _read(model: Any, tensor: Any, dtype: Any) -> np.ndarray:
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), dtype)


def _write(model: Any, tensor: Any, values: np.ndarray) -> None:
    """A buffer of the tensor's own: equal constants shared the old one."""
    buffer = schema.BufferT()
    buffer.data = values.view(np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)


def _drop_unused(model: Any) -> None:
    """Empties the buffers that nothing reads any more."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {metadata.buffer for metadata in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def _runs(content: bytes) -> bool:
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with native_errors_kept():
        try:
            interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                # A root stops at what is negative, a GATHER at a place that is not there.
                value = 1000 if details["dtype"] == np.int16 else 0
                filled = np.full(details["shape"], value, details["dtype"])
                interpreter.set_tensor(details["index"], filled)
            interpreter.invoke()
        except (RuntimeError, ValueError):
            return False
    return True
