"""QAT and float models to TFLite files that have been loaded again and checked."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.files import atomic_path
from ehap_tf.graph import kept_random_state
from ehap_tf.models.keras3 import either_keras
from ehap_tf.native_output import native_errors_kept
from ehap_tf.quantization.integer_rules.canonical import canonical_model
from ehap_tf.quantization.integer_rules.wrappers import require_qat
from ehap_tf.quantization.tflite.biases import round_biases
from ehap_tf.quantization.tflite.evaluate import TFLiteModel, classes
from ehap_tf.quantization.tflite.finite import require_finite_weights
from ehap_tf.quantization.tflite.four_bits import pack_dense_kernels
from ehap_tf.quantization.tflite.inputs import input_batches, input_names
from ehap_tf.quantization.tflite.integer_graph import IntegerGraph, float_output_names
from ehap_tf.quantization.tflite.metadata import Normalization, write_metadata
from ehap_tf.quantization.tflite.mixed_types import with_dequantized_inputs
from ehap_tf.quantization.tflite.output_grids import (
    activation_bits,
    constants,
    output_quantizer,
    output_step,
)
from ehap_tf.quantization.tflite.sixteen_bits import missing_kernels, with_sixteen_bit_activations
from ehap_tf.quantization.tflite.tflite_file import TFLiteFile, inspect_tflite

LARGEST_DIFFERENCE = 10.0
"""Mean distance of a file's outputs from its model's, in steps of the output: rounding the other
way now and then makes one or two of it, an operator that computes something else tens."""
STEPS_OF_SIXTEEN_BITS = 16.0
"""That count as one there: kernels interpolate in tables, and multiply by fewer digits."""
LARGEST_ERROR = 0.5
"""Mean squared distance, as a share of the variance of the model's outputs over the examples; that
of a file that returns constants is at least 1. Most outputs of a softmax over many classes are 0
whatever it says, and the mean distance stays small."""
SMALLEST_SPREAD = 3.0
"""Standard deviation over the examples, in steps, of outputs to be judged so; less is rounding."""
LARGEST_SHARE_OF_OTHERS = 0.5
"""Of the integers in an output, the places of the largest values for instance."""
CHECKED_EXAMPLES = 2048
"""Of `data`, on which a file is compared with its model."""

IO_DTYPES = {"int8": tf.int8, "uint8": tf.uint8, "int16": tf.int8, "float32": tf.float32}
"""What the converter is told; it writes 8 bits where 16 are wanted."""
OF_BITS = {8: ("int8", "uint8", "float32"), 16: ("int16", "float32")}
"""Bits of activations -> types of inputs and outputs, the first by default."""


@either_keras(None)
def export_tflite(
    qat: tf_keras.Model,
    path: str | os.PathLike[str],
    *,
    io_dtype: str | None = None,
    allow_float: bool = False,
    normalization: Normalization | None = None,
    labels: Sequence[str] | None = None,
    data: Any = None,
) -> TFLiteFile:
    """Writes a QAT model as a full-integer TFLite file, loads it again and checks it.

    The file takes one example at a time. BatchNorm is folded into the convolutions, and so is every
    `ScatterChannels` that is its branch's only reader. What an application must know (scale and
    zero point of every input and output, normalisation, labels) is written beside it, as
    `NAME.tflite.json`.

    Args:
        qat: a calibrated or trained model from `quantize`. Its biases are rounded in place to the
            integers of the file, see `round_biases`, so that the two compute the same.
        path: of the file; replaced only by a file that has passed the check.
        io_dtype: of inputs and outputs: "int8", "uint8" or "float32", of 16-bit activations
            "int16" or "float32"; None is the first of them.
        allow_float: accept operators that compute in floating point.
        normalization: of the pixels, if it is not part of the model; goes into the metadata.
        labels: the classes' names; go into the metadata, with the one output that has as many
            numbers.
        data: real inputs, as `representative_data` of `quantize`; the file's outputs on the first
            2,048 examples are compared with those of `qat`, each of several outputs by itself.

    Returns:
        What the file holds, read from the file.

    Raises:
        OSError: the path cannot be written (noticed before converting).
        TypeError: `qat` does not come from `quantize`.
        ValueError: the model has not seen data; a weight or range is NaN or infinite; the file
            holds float operators, or computes something else than the model or holds other types
            than it was asked for; `data` is empty or of another shape; `labels` fit no output, or
            several.
    """
    require_qat(qat)
    offered = OF_BITS[activation_bits(qat)]
    io_dtype = io_dtype or offered[0]
    if io_dtype not in offered:
        raise ValueError(
            f"io_dtype must be one of {offered} for activations of {activation_bits(qat)} bits. "
            f"Received: {io_dtype!r}"
        )
    require_finite_weights(qat)
    labelled = None if labels is None else _labelled_output(qat, labels)
    with atomic_path(path) as temporary:
        round_biases(qat)
        graph = IntegerGraph(qat)
        content = _converted(qat, graph, io_dtype)
        if graph.activation_bits > 8:
            _require_kernels(content)
        temporary.write_bytes(content)
        file = inspect_tflite(temporary)
        if file.float_operators and not allow_float:
            raise ValueError(
                "the file would compute in floating point: "
                f"{', '.join(file.float_operators)}. Replace the layers these come from, or pass "
                "allow_float=True."
            )
        _require_types(file, qat, graph, io_dtype)
        if data is not None:
            file = _compared(file, qat, data)
        write_metadata(file, path, float_output_names(qat), normalization, labels, labelled)
    return dataclasses.replace(file, path=pathlib.Path(path))


def integer_file(qat: tf_keras.Model) -> bytes:
    """The file of a QAT model with integer inputs and outputs, unchecked."""
    return _converted(qat, IntegerGraph(qat), OF_BITS[activation_bits(qat)][0])


def _converted(qat: tf_keras.Model, graph: IntegerGraph, io_dtype: str) -> bytes:
    with graph.as_eight_bits():
        converter = _converter(qat, graph)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = IO_DTYPES[io_dtype]
    converter.inference_output_type = IO_DTYPES[io_dtype]
    content = pack_dense_kernels(_convert(converter), graph.stored.values())
    content = with_dequantized_inputs(content)
    if graph.activation_bits == 8:
        return content
    return with_sixteen_bit_activations(content, constants(qat))


def require_sixteen_bit_kernels(qat: tf_keras.Model) -> None:
    """Converts a QAT model of 16-bit activations that has not seen data yet, to try its operators.

    Raises:
        ValueError: TFLite lacks some; with their names.
    """
    unseen = [
        variables["batches"]
        for _, variables in filter(None, map(output_quantizer, qat.layers))
        if "batches" in variables and not float(variables["batches"])
    ]
    for batches in unseen:
        batches.assign(1.0)
    try:
        _require_kernels(integer_file(qat))
    finally:
        for batches in unseen:
            batches.assign(0.0)


def _require_kernels(content: bytes) -> None:
    """Checks that LiteRT has a kernel of 16-bit activations for each operator of a file.

    Raises:
        ValueError: it has not; with their names.
    """
    missing = missing_kernels(content)
    if missing:
        raise ValueError(
            "activation_bits=16 needs operators that TFLite computes of 8-bit activations only: "
            f"{', '.join(missing)}. Replace the layers these come from, keep them in float "
            "(plan_quantization(keep_float=...)), or take activation_bits=8."
        )


def _labelled_output(qat: tf_keras.Model, labels: Sequence[str]) -> int:
    """The number of the output that `labels` are for.

    Raises:
        ValueError: it is not one and only one.
    """
    widths = [tensor.shape[-1] for tensor in qat.outputs]
    if widths == [1] and len(labels) == 2:
        return 0  # A number for the second of two classes.
    if len(widths) == 1 and widths[0] != len(labels):
        raise ValueError(f"labels must name the {widths[0]} outputs. Received: {len(labels)} names")
    if widths.count(len(labels)) != 1:
        raise ValueError(
            f"labels must fit one output and no other; the outputs have {widths} numbers. "
            f"Received: {len(labels)} names"
        )
    return widths.index(len(labels))


def _require_types(
    file: TFLiteFile, qat: tf_keras.Model, graph: IntegerGraph, io_dtype: str
) -> None:
    """Checks that the converter has followed: what it cannot do it leaves without a word.

    Raises:
        ValueError: inputs and outputs are of other types, or 4-bit kernels larger.
    """
    integer = TFLiteModel(file.path)
    # What counts or places, and truth values, are of their own type.
    own = [y.dtype.name for y in qat.outputs]
    outputs = zip(integer.outputs, own, strict=True)
    specs = [*integer.inputs.values(), *(s for s, t in outputs if t == "float32")]
    for spec in specs:
        # An output that a layer computes in float, where that is allowed, may stay so.
        if spec.dtype != io_dtype and not (file.float_operators and spec.dtype == "float32"):
            raise ValueError(
                f"the file's inputs and outputs must be {io_dtype}. Received: {spec.name!r} in "
                f"{spec.dtype}; please report it with the model."
            )
    # Equal kernels share one constant, which the converter stores in 8 bits.
    four_bit = [kernel for kernel in graph.stored.values() if kernel.bits == 4]
    kernels = collections.Counter(kernel.values.tobytes() for kernel in four_bit)
    expected = sum(count == 1 for count in kernels.values())
    stored = file.tensor_types.get("INT4", 0)
    if expected <= stored < len(kernels):
        # Those of Dense layers were packed behind the converter.
        shared = {k.values.tobytes(): k.values.size for k in four_bit if len(k.shape) > 2}
        weights = sum(size for values, size in shared.items() if kernels[values] > 1)
        warnings.warn(
            f"kernels of 4 bits that are stored in 8: {len(kernels) - stored}, which is "
            f"{weights // 2} bytes more. The converter does not pack one that several calls share",
            RuntimeWarning,
            stacklevel=5,
        )
    if stored < expected:
        raise ValueError(
            f"the file must hold {expected} kernels in 4 bits. Received: {stored}; please report "
            "it with the model."
        )


def _compared(file: TFLiteFile, qat: tf_keras.Model, data: Any) -> TFLiteFile:
    """Adds to `file` how far its outputs are from those of `qat`.

    Raises:
        ValueError: too far; `data` is empty.
    """
    integer, names = TFLiteModel(file.path), input_names(qat)
    received, expected = [], []
    for x in input_batches(qat, data, CHECKED_EXAMPLES):
        received.append(tf.nest.flatten(integer(dict(zip(names, x, strict=True)))))
        expected.append([y.numpy() for y in tf.nest.flatten(qat(x, training=False))])
    differences: list[float] = []
    agreements: list[float | None] = []
    for index in range(len(qat.outputs)):
        one, other = (np.concatenate([y[index] for y in side]) for side in (received, expected))
        if qat.outputs[index].dtype.is_floating:
            coarse = 1.0 if activation_bits(qat) == 8 else STEPS_OF_SIXTEEN_BITS
            difference, reason = _difference(one, other, output_step(qat, index), coarse)
        else:
            difference, reason = _share_of_others(one, other)
        if reason:
            which = f" in output {index} of {len(qat.outputs)}" if len(qat.outputs) > 1 else ""
            raise ValueError(
                f"the file's outputs must be those of the QAT model, {reason}{which}. One of the "
                f"operators {', '.join(file.operators)} computes something else in integers; "
                "please report it with the model."
            )
        differences.append(difference)
        is_class = other.ndim > 1 and other.shape[-1] > 1 and other.dtype.kind == "f"
        agreements.append(float(np.mean(classes(one) == classes(other))) if is_class else None)
    return dataclasses.replace(
        file,
        difference=max(differences),
        agreement=min((share for share in agreements if share is not None), default=None),
        agreements=tuple(agreements),
    )


def _difference(
    received: np.ndarray, expected: np.ndarray, step: float, coarse: float
) -> tuple[float, str]:
    """The mean distance of two outputs in steps, and why it is too large, or "" if it is not.

    Args:
        received: from the file.
        expected: from the model.
        step: of the output.
        coarse: how many steps count as one.
    """
    errors = (received - expected) / step
    difference = float(np.abs(errors).mean())
    if difference > LARGEST_DIFFERENCE * coarse:
        return difference, (
            f"up to {LARGEST_DIFFERENCE * coarse:g} steps of the output in the mean. Received: "
            f"{difference:.3g} steps"
        )
    variance = float(np.square((expected - expected.mean(axis=0)) / step).mean())
    smallest = (SMALLEST_SPREAD * coarse) ** 2
    error = float(np.square(errors).mean())
    if variance > smallest and error > LARGEST_ERROR * variance:
        return difference, (
            f"up to a mean squared distance of {LARGEST_ERROR:g} times their variance over the "
            f"examples. Received: {error / variance:.3g} times"
        )
    return difference, ""


def _share_of_others(received: np.ndarray, expected: np.ndarray) -> tuple[float, str]:
    """The share of integers or truth values that are others, and why it is too large, or ""."""
    share = float(np.mean(received != expected))
    if share <= LARGEST_SHARE_OF_OTHERS:
        return share, ""
    return share, f"all but {LARGEST_SHARE_OF_OTHERS:.0%} of them. Received: {share:.0%} others"


@kept_random_state()
@either_keras(None)
def export_float_tflite(model: tf_keras.Model, path: str | os.PathLike[str]) -> TFLiteFile:
    """Writes a float model as a float32 TFLite file with a batch of one, the INT8 file's yardstick.

    Raises:
        OSError: the path cannot be written (noticed before converting).
        TypeError: `model` is neither Functional nor Sequential.
        ValueError: a weight is NaN or infinite.
    """
    with atomic_path(path) as temporary:
        flat = canonical_model(model)
        require_finite_weights(model)
        # Layers that augment images train where nobody says otherwise.
        converter = _converter(flat, lambda inputs: tf.nest.flatten(flat(inputs, training=False)))
        temporary.write_bytes(_convert(converter))
        file = inspect_tflite(temporary)
    return dataclasses.replace(file, path=pathlib.Path(path))


def _converter(model: tf_keras.Model, graph: Any) -> Any:
    module = tf.Module()
    module.run = tf.function(
        lambda *inputs: graph(list(inputs)),
        input_signature=[
            tf.TensorSpec((1, *tensor.shape[1:]), tf.float32, name=name)
            for name, tensor in zip(input_names(model), model.inputs, strict=True)
        ],
        autograph=False,
    )
    concrete = module.run.get_concrete_function()
    # The variables that are read, and not the model: the converter saves what hangs on the module,
    # and a model drags along the functions of all its layers, many times the work of converting.
    module.variables_read = list(concrete.graph.variables)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)


def _convert(converter: Any) -> bytes:
    with warnings.catch_warnings(), native_errors_kept():
        warnings.simplefilter("ignore")
        return converter.convert()
