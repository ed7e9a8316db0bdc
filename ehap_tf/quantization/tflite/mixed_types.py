"""A fault of the TFLite converter put right: float operators that read integers."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ehap_tf.quantization.tflite.tflite_file import parsed, serialized

_INTEGERS = (schema.TensorType.INT8, schema.TensorType.UINT8)
_PRODUCTS = (
    schema.BuiltinOperator.BATCH_MATMUL,
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)


def with_dequantized_inputs(content: bytes) -> bytes:
    """Puts a DEQUANTIZE before each product of float weights with integers.

    The converter forgets it where a float layer multiplies what it reads with its weights, and
    TFLite refuses the file ("INT8 != FLOAT32"). Any other file is returned as it is.

    Args:
        content: of a TFLite file.
    """
    model = parsed(content)
    found = False
    for graph in model.subgraphs:
        floats: dict[int, int] = {}
        operators = []
        for operator in graph.operators:
            if _is_mixed(model, graph, operator):
                found = True
                read = int(operator.inputs[0])
                if read not in floats:
                    floats[read] = len(graph.tensors)
                    graph.tensors.append(_float_twin(graph.tensors[read]))
                    operators.append(_dequantize(model, read, floats[read]))
                operator.inputs = [floats[read], *operator.inputs[1:]]
            operators.append(operator)
        graph.operators = operators
    if not found:
        return content
    return serialized(model)


def _is_mixed(model: Any, graph: Any, operator: Any) -> bool:
    code = model.operatorCodes[operator.opcodeIndex]
    if max(code.builtinCode, code.deprecatedBuiltinCode) not in _PRODUCTS:
        return False
    x, weights = (graph.tensors[int(index)].type for index in operator.inputs[:2])
    y = graph.tensors[int(operator.outputs[0])].type
    return x in _INTEGERS and weights == y == schema.TensorType.FLOAT32


def _float_twin(tensor: Any) -> Any:
    twin = schema.TensorT()
    twin.name = tensor.name + b"_float"
    twin.shape, twin.shapeSignature = tensor.shape, tensor.shapeSignature
    twin.type, twin.buffer = schema.TensorType.FLOAT32, 0
    twin.hasRank = tensor.hasRank
    return twin


def _dequantize(model: Any, read: int, written: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, schema.BuiltinOperator.DEQUANTIZE)
    operator.inputs, operator.outputs = [read], [written]
    return operator


def _opcode(model: Any, builtin: int) -> int:
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 2
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
