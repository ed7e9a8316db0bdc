"""A TFLite file as a C header, for firmware that has no file system."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehap_tf.files import write_text
from ehap_tf.quantization import TensorSpec, TFLiteModel, inspect_tflite, read_metadata

_C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t"}
_BYTES_IN_A_LINE = 16


def export_c(
    path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, name: str = ""
) -> pathlib.Path:
    """Writes a TFLite file as a header for C and C++: its bytes, and all that a program must know.

    Besides the array, aligned to 16 bytes, there are the size of the arena, the operators, for each
    input and output its place in the file, size, scale and zero point, and, where the file's JSON
    tells them, the labels and how a pixel becomes an input (`NAME_from_pixel`).

    Args:
        path: of the file.
        output: where the header goes; beside the file, with the suffix `.h`, when None.
        name: that all names in the header begin with; the file's when empty.

    Returns:
        Where the header is.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file or its JSON is damaged, or they do not belong together.
        ValueError: `name` is no name in C.

    Example:
        >>> ehap.export_c("model_int8.tflite")  # model_int8.h
    """
    path = pathlib.Path(path)
    name = name or re.sub(r"\W", "_", f"{'_' * path.stem[:1].isdigit()}{path.stem}")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"name must be a name in C. Received: {name!r}")
    file = inspect_tflite(path)
    model = TFLiteModel(path)
    content = path.read_bytes()
    try:
        known: Mapping[str, Any] = read_metadata(path)
    except FileNotFoundError:
        known = {}
    upper = name.upper()
    lines = [
        f"/* {path.name}, {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}.",
        "   Made by ehap_tf.export_c; do not edit. */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        f"/* Operators: {', '.join(f'{kind} ({n})' for kind, n in file.operators.items())}. */",
        f"#define {upper}_BYTES {len(content)}",
    ]
    if file.arena_bytes is not None:
        lines += [
            "/* Of the tensor arena, by the count of a 64-bit machine; fewer are enough on one of",
            "   32 bits. Kernels of a vendor may want more for themselves. */",
            f"#define {upper}_ARENA_BYTES {file.arena_bytes}",
        ]
    inputs, outputs = list(model.inputs.items()), list(enumerate(model.outputs))
    for kind, tensors, places in (
        ("input", inputs, model.input_places),
        ("output", outputs, model.output_places),
    ):
        for (_, spec), place in zip(tensors, places, strict=True):
            suffix = f"_{place}" if len(tensors) > 1 else ""
            lines += ["", *_tensor(f"{name}_{kind}{suffix}", spec, place)]
    lines += _pixels(name, known.get("normalization"), [spec for _, spec in inputs])
    lines += _labels(name, known.get("labels"))
    lines += ["", *_array(name, content), "", f"#endif /* {upper}_H */", ""]
    target = path.with_suffix(".h") if output is None else pathlib.Path(output)
    write_text(target, "\n".join(lines))
    return target


def _tensor(name: str, spec: TensorSpec, place: int) -> list[str]:
    upper = name.upper()
    return [
        f"/* {spec.dtype}, shape {'x'.join(map(str, spec.shape))}; real value = scale * (integer -"
        " zero point), or the number itself where the scale is 0. */",
        f"typedef {_C_TYPES.get(spec.dtype, 'float')} {name}_t;",
        f"#define {upper}_PLACE {place}",
        f"#define {upper}_SIZE {int(np.prod(spec.shape))}",
        f"static const float {name}_scale = {_float(spec.scale)};",
        f"static const int32_t {name}_zero_point = {spec.zero_point};",
    ]


def _pixels(
    name: str, normalization: Mapping[str, Any] | None, inputs: Sequence[TensorSpec]
) -> list[str]:
    """How the only input is made of pixels, where that is known."""
    if normalization is None or len(inputs) != 1:
        return []
    mean, std = normalization["mean"], normalization["std"]
    order = ", blue first, then green, red" if normalization.get("channels") == "BGR" else ""
    lines = [
        "",
        f"/* An input from a pixel of 0 to 255: (pixel / 255 - mean) / std{order}. */",
        f"static const float {name}_mean[{len(mean)}] = {{{', '.join(map(_float, mean))}}};",
        f"static const float {name}_std[{len(std)}] = {{{', '.join(map(_float, std))}}};",
        f"static inline {name}_input_t {name}_from_pixel(uint8_t pixel, int channel) {{",
        f"  float x = (pixel / 255.0f - {name}_mean[{_index(mean)}]) / {name}_std[{_index(std)}];",
    ]
    spec = inputs[0]
    if not spec.scale:
        return [*lines, "  return x;", "}"]
    limits = np.iinfo(spec.dtype)
    return [
        *lines,
        f"  x = x / {name}_input_scale + {name}_input_zero_point;",
        f"  if (x < {limits.min}.0f) return {limits.min};",
        f"  if (x > {limits.max}.0f) return {limits.max};",
        f"  return ({name}_input_t)(x < 0.0f ? x - 0.5f : x + 0.5f);",
        "}",
    ]


def _index(values: Sequence[float]) -> str:
    return "channel" if len(values) > 1 else "0 * channel"


def _labels(name: str, labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        return []
    texts = ", ".join(json.dumps(label) for label in labels)
    return ["", f"static const char *const {name}_labels[{len(labels)}] = {{{texts}}};"]


def _array(name: str, content: bytes) -> list[str]:
    rows = (
        content[start : start + _BYTES_IN_A_LINE]
        for start in range(0, len(content), _BYTES_IN_A_LINE)
    )
    return [
        "#ifdef __cplusplus",
        "alignas(16)",
        "#else",
        "_Alignas(16)",
        "#endif",
        f"static const unsigned char {name}_data[{len(content)}] = {{",
        *(f"  {', '.join(f'0x{byte:02x}' for byte in row)}," for row in rows),
        "};",
    ]


def _float(value: float) -> str:
    text = repr(float(np.float32(value)))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
