"""Dense kernels of 4 bits with a scale for each unit, which the converter cannot write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ehap_tf.quantization.tflite.folding import FoldedKernel
from ehap_tf.quantization.tflite.tflite_file import parsed, serialized


def pack_dense_kernels(content: bytes, kernels: Iterable[FoldedKernel]) -> bytes:
    """Stores the 4-bit kernels of Dense layers in 4 bits.

    The converter takes fake quantization with 4 bits for a kernel that it need not transpose, or of
    one scale. It has written the others in 8 bits, with steps of 7/127; here their integers become
    those of 4 bits, two in a byte, and the biases those for the larger steps.

    Args:
        content: a TFLite file.
        kernels: as the file computes with them, see `IntegerGraph.stored`; others than 4-bit ones
            with several scales are left alone.
    """
    dense = [k for k in kernels if k.bits == 4 and k.limits.ndim and len(k.shape) == 2]
    if not dense:
        return content
    model = parsed(content)
    packed: dict[int, np.ndarray] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
                _pack(model, graph, operator, dense, packed)
    return serialized(model)


def _pack(
    model: Any, graph: Any, operator: Any, kernels: list[FoldedKernel], packed: dict[int, Any]
) -> None:
    """Rewrites the kernel and the bias of one FULLY_CONNECTED.

    Args:
        model: the file.
        graph: of the file, that the operator is part of.
        operator: to be rewritten.
        kernels: that it may have.
        packed: buffers that are rewritten already, with their scales: equal kernels share one.
    """
    tensors: list[Any] = [graph.tensors[i] if i >= 0 else None for i in operator.inputs]
    x, weights, *bias = tensors
    if weights.buffer not in packed:
        if weights.type != schema.TensorType.INT8:
            return
        scale = np.asarray(weights.quantization.scale, np.float64)[:, None]
        integers = np.frombuffer(bytes(model.buffers[weights.buffer].data), np.int8)
        values = integers.reshape(weights.shape) * scale
        kernel = next((k for k in kernels if _equal(k.values.T, values, scale)), None)
        if kernel is None:
            return
        nibbles = np.append(kernel.integers.T.ravel(), np.int8(0)).view(np.uint8) & 15
        nibbles = nibbles[: len(nibbles) // 2 * 2]
        model.buffers[weights.buffer].data = nibbles[0::2] | (nibbles[1::2] << 4)
        packed[weights.buffer] = (kernel.limits / 7.0).astype(np.float32)
    weights.type = schema.TensorType.INT4
    weights.quantization.scale = packed[weights.buffer]
    if bias and bias[0] is not None:
        buffer = model.buffers[bias[0].buffer]
        accumulators = np.frombuffer(bytes(buffer.data), np.int32)
        real = accumulators * np.asarray(bias[0].quantization.scale, np.float64)
        unit = x.quantization.scale[0] * packed[weights.buffer].astype(np.float64)
        buffer.data = np.rint(real / unit).astype(np.int32).view(np.uint8)
        bias[0].quantization.scale = unit.astype(np.float32)


def _equal(kernel: np.ndarray, values: np.ndarray, scale: np.ndarray) -> bool:
    return kernel.shape == values.shape and bool((np.abs(kernel - values) <= 0.6 * scale).all())
