"""What a TFLite file holds, read from the file itself."""

from __future__ import annotations

import collections
import copy
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from ehap_tf.files import CorruptFileError
from ehap_tf.quantization.tflite.arena import plan_arena

FLOAT_TYPES = frozenset({"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16"})
CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
TYPE_NAMES = {
    value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")
}
OPERATOR_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a TFLite file.

    Attributes:
        name: as in the file.
        shape: batch included.
        dtype: "int8", "uint8", "int16", "float32".
        scale: real value = scale * (integer - zero_point); 0.0 for a float tensor.
        zero_point: see `scale`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class TFLiteFile:
    """What was verified about a TFLite file.

    Attributes:
        path: of the file.
        bytes: its size.
        operators: number of operators of each kind, in the order of their first appearance.
        float_operators: descriptions of the operators that compute in floating point, QUANTIZE
            and DEQUANTIZE at a float input or output not counted.
        tensor_types: number of tensors of each type.
        input: the input; of several the first by name.
        output: the output; of several the model's first.
        difference: mean distance of its outputs from the QAT model's on real inputs, in steps of
            the output, of integers the share of others; of several outputs the largest; None where
            `export_tflite` was given none.
        agreement: share of those inputs for which both say the same class; of several outputs the
            smallest; likewise, and None for single numbers, which are no classes.
        agreements: the same of each output, in the model's order; empty where `export_tflite` was
            given no inputs.
        peak_bytes: of the tensors that are alive at once, at most; None where the size of one is
            only known when the file runs.
        arena_bytes: the tensor arena that TensorFlow Lite Micro needs, see `plan_arena`; likewise.
    """

    path: pathlib.Path
    bytes: int
    operators: Mapping[str, int]
    float_operators: tuple[str, ...]
    tensor_types: Mapping[str, int]
    input: TensorSpec
    output: TensorSpec
    difference: float | None = None
    agreement: float | None = None
    agreements: tuple[float | None, ...] = ()
    peak_bytes: int | None = None
    arena_bytes: int | None = None

    @property
    def float_ops(self) -> int:
        """How many operators compute in floating point."""
        return len(self.float_operators)


def inspect_tflite(path: str | os.PathLike[str]) -> TFLiteFile:
    """Loads a TFLite file, allocates its tensors and lists what it computes with.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, or no TFLite file.
    """
    interpreter = open_interpreter(path)
    inputs, outputs = signature(interpreter)
    model = parse_tflite(path)
    arena = plan_arena(model)
    names: list[str] = []
    types: list[str] = []
    floats: list[str] = []
    for graph in model.subgraphs:  # beside the first, the bodies of its loops and conditions
        of_graph = [TYPE_NAMES[tensor.type] for tensor in graph.tensors]
        types += of_graph
        for operator in graph.operators:
            name = operator_name(model, operator)
            names.append(name)
            touched = [int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0]
            if name not in CONVERSIONS and any(of_graph[i] in FLOAT_TYPES for i in touched):
                tensor = graph.tensors[operator.outputs[0]].name if len(operator.outputs) else None
                floats.append(f"{name} ({(tensor or b'?').decode(errors='replace')})")
    return TFLiteFile(
        path=pathlib.Path(path),
        bytes=os.path.getsize(path),
        operators=dict(collections.Counter(names)),
        float_operators=tuple(floats),
        tensor_types=dict(collections.Counter(types)),
        input=tensor_spec(next(iter(inputs.values()))),
        output=tensor_spec(outputs[0]),
        peak_bytes=None if arena is None else arena.peak_bytes,
        arena_bytes=None if arena is None else arena.arena_bytes,
    )


def open_interpreter(
    path: str | os.PathLike[str], threads: int = 1, *, reference: bool = False
) -> Interpreter:
    """Returns an interpreter with its tensors allocated.

    With XNNPACK; a file that XNNPACK does not take is left to TFLite's own kernels, with a warning.
    Or with the reference kernels, which are slow and which others are checked against.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated, no TFLite file, or one that no kernels can run.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no TFLite file at {str(path)!r}.")
    parse_tflite(path)
    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    try:
        return _allocated(path, threads, kernels)
    except (ValueError, RuntimeError) as error:
        interpreter = None if reference else _allocated_without_xnnpack(path, threads)
        if interpreter is None:
            raise CorruptFileError(f"{str(path)!r} cannot be run as TFLite: {error}") from error
        warnings.warn(
            f"{str(path)!r} runs without XNNPACK, by TFLite's own kernels, and is measured so: "
            f"XNNPACK does not take it: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return interpreter


def _allocated_without_xnnpack(path: pathlib.Path, threads: int) -> Interpreter | None:
    try:
        return _allocated(path, threads, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    except (ValueError, RuntimeError):
        return None


def _allocated(path: pathlib.Path, threads: int, kernels: OpResolverType) -> Interpreter:
    interpreter = Interpreter(
        model_path=str(path), num_threads=threads, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    return interpreter


def signature(
    interpreter: Interpreter,
) -> tuple[dict[str, Mapping[str, Any]], list[Mapping[str, Any]]]:
    """What an interpreter tells of its inputs, by name, and of its outputs, in the model's order.

    The converter orders the tensors of a file at will; its signature names the inputs after the
    model's, and numbers the outputs.
    """
    signatures = interpreter.get_signature_list()
    if not signatures:
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        return {details["name"]: details for details in inputs}, outputs
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    by_name = runner.get_output_details()
    numbered = sorted(by_name, key=lambda name: (len(name), name))  # output_10 after output_9
    return dict(sorted(runner.get_input_details().items())), [by_name[name] for name in numbered]


def quantized(path: str | os.PathLike[str]) -> dict[int, TensorSpec]:
    """What the QUANTIZE operators of a file write, by the indices of the tensors that they read."""
    model = parse_tflite(path)
    graph = model.subgraphs[0]
    found: dict[int, TensorSpec] = {}
    for operator in graph.operators:
        if operator_name(model, operator) == "QUANTIZE":
            tensor = graph.tensors[operator.outputs[0]]
            spec = TensorSpec(
                name=tensor.name.decode(errors="replace"),
                shape=tuple(int(size) for size in tensor.shape),
                dtype=TYPE_NAMES[tensor.type].lower(),
                scale=float(tensor.quantization.scale[0]),
                zero_point=int(tensor.quantization.zeroPoint[0]),
            )
            found.setdefault(int(operator.inputs[0]), spec)
    return found


def parse_tflite(path: str | os.PathLike[str]) -> Any:
    """The file as objects of its schema.

    Raises:
        CorruptFileError: the file is truncated, or no TFLite file.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        if content[4:8] != b"TFL3":
            raise ValueError("it does not start as one")
        return parsed(content)
    except Exception as error:  # The parser follows offsets into whatever is there.
        raise CorruptFileError(
            f"{os.fspath(path)!r} is not a TFLite file, or is truncated: {error}"
        ) from error


def parsed(content: bytes) -> Any:
    """The content of a TFLite file as objects of its schema."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def serialized(model: Any) -> bytes:
    """The inverse of `parsed`."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator_name(model: Any, operator: Any) -> str:
    """The kind of an operator of a parsed file."""
    code = model.operatorCodes[operator.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    if code.customCode:
        return code.customCode.decode(errors="replace")
    return OPERATOR_NAMES.get(builtin, str(builtin))


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether a tensor of a parsed file has its values there."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def distinct_operators(model: Any) -> Iterator[tuple[str, tuple[int, ...], Any, Any]]:
    """The operators of a parsed file, one of those that a runtime has one kernel for.

    Yields:
        Name, types of the tensors that it reads and writes, the graph that it is part of, and the
        operator.
    """
    known: set[tuple[str, tuple[int, ...]]] = set()
    for graph in model.subgraphs:
        for operator in graph.operators:
            tensors = (*operator.inputs, *operator.outputs)
            types = tuple(graph.tensors[index].type for index in tensors if index >= 0)
            name = operator_name(model, operator)
            if (name, types) not in known:
                known.add((name, types))
                yield name, types, graph, operator


def operator_alone(model: Any, graph: Any, operator: Any) -> bytes:
    """A file of one operator of a parsed file, to be tried: what it reads is the file's input.

    Args:
        model: the parsed file.
        graph: of it, that the operator is part of.
        operator: one of the graph's.
    """
    single = copy.copy(graph)
    single.operators = [operator]
    single.outputs = [int(index) for index in operator.outputs]
    read = (int(index) for index in operator.inputs if index >= 0)
    single.inputs = list(
        dict.fromkeys(index for index in read if not is_constant(model, graph.tensors[index]))
    )
    trial = copy.copy(model)
    # Bodies of loops are found by their numbers; the first is the one that runs.
    trial.subgraphs = [single, *model.subgraphs[1:]]
    trial.signatureDefs = []
    return serialized(trial)


def tensor_spec(details: Mapping[str, Any]) -> TensorSpec:
    """Reads an interpreter's description of an input or output."""
    scale, zero_point = details["quantization"]
    return TensorSpec(
        name=details["name"],
        shape=tuple(int(size) for size in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scale),
        zero_point=int(zero_point),
    )
