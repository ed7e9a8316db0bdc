"""Whether what stays in float converts: each float island is tried alone, before any training."""

from __future__ import annotations

import pathlib
import re
import tempfile
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import arguments, is_symbolic, nodes_in_order, propagate_calls
from ehap_tf.models.kinds import spelled
from ehap_tf.quantization.integer_rules.integer_kernels import keeps_grid
from ehap_tf.quantization.integer_rules.own_layers import EhapQuantizeLayer
from ehap_tf.quantization.plan.quantizers import EhapActivationQuantizer, EhapFixedQuantizer
from ehap_tf.quantization.tflite.conversion import integer_file
from ehap_tf.quantization.tflite.evaluate import TFLiteModel

FixedRange = tuple[float, float] | None

PRESCRIBING = {0.0: "sigmoid", -1.0: "tanh", -255.0 / 16.0: tf.nn.log_softmax}
"""The lower end of a range -> a function whose kernel prescribes it."""

_VERDICTS: dict[Any, str] = {}
"""What TFLite said of an island, "" for nothing, by all that the island is made of."""


def require_convertible(
    flat: tf_keras.Model, float_layers: Collection[str], configs: dict[str, dict[str, Any]]
) -> None:
    """Converts every float island of a model alone and runs it once.

    An island is a layer that stays in float, with those that hand it integers or truth values. It
    gets the weights that it has, inputs of its size, and the quantizations around it.

    Args:
        flat: the rewritten model, not wrapped yet.
        float_layers: names of the layers that stay in float.
        configs: how the others are quantized.

    Raises:
        ValueError: TFLite does not take one; with the layer and what it said.
    """
    nodes = list(nodes_in_order(flat))
    makers = {id(y): node for node in nodes for y in tf.nest.flatten(node.outputs)}
    for node in nodes:
        if node.layer.name not in float_layers:
            continue
        island = _island(node, makers)
        ranges = [_fixed_range(x, makers, configs) for x in _read(island)]
        key = _identity(island, ranges)
        said = _VERDICTS.get(key) if key is not None else None
        if said is None:
            said = _try(island, ranges)
            if key is not None:
                _VERDICTS[key] = said
        if said:
            layer = node.layer
            name = layer.symbol if hasattr(layer, "symbol") else spelled(type(layer))
            raise ValueError(
                f"layer {layer.name!r} ({name}) cannot be kept in float: TFLite says {said!r}. "
                "Replace it, or compute it outside the model, which gets its output as an input."
            )


def _island(node: Any, makers: dict[int, Any]) -> list[Any]:
    """The call of a layer behind those whose integers or truth values it reads, in order."""
    found = [node]
    for x in node.keras_inputs:
        if not x.dtype.is_floating and id(x) in makers:
            before = _island(makers[id(x)], makers)
            found = [*(n for n in before if n not in found), *found]
    return found


def _read(island: list[Any]) -> list[Any]:
    """The tensors that an island reads from outside, each once."""
    made = {id(y) for node in island for y in tf.nest.flatten(node.outputs)}
    read = {id(x): x for node in island for x in node.keras_inputs if id(x) not in made}
    return list(read.values())


def _fixed_range(x: Any, makers: dict[int, Any], configs: dict[str, dict[str, Any]]) -> FixedRange:
    """The range of a tensor, if the kernel that writes it prescribes one."""
    node = makers.get(id(x))
    while node is not None and keeps_grid(node.layer):
        node = makers.get(id(node.keras_inputs[0]))
    if node is None or node.layer.name not in configs:
        return None
    quantizers = configs[node.layer.name]["quantize_config"].get_output_quantizers(node.layer)
    fixed = [q for q in quantizers if isinstance(q, EhapFixedQuantizer)]
    return (fixed[0].low, fixed[0].high) if fixed else None


def _identity(island: list[Any], ranges: list[FixedRange]) -> Any:
    """All that the verdict on an island hangs on, to be looked up; None where it has no config."""

    def plain(value: Any) -> Any:
        if is_symbolic(value):
            return tuple(value.shape), value.dtype.name
        return repr(value)

    parts = []
    for node in island:
        try:
            config = node.layer.get_config()
        except NotImplementedError:
            return None
        config.pop("name", None)
        call = tf.nest.map_structure(plain, (node.call_args, node.call_kwargs))
        function = getattr(node.layer, "function", None)
        parts.append((type(node.layer), function, repr(config), repr(call)))
    return tuple(parts), tuple(ranges)


def _try(island: list[Any], ranges: list[FixedRange]) -> str:
    """Converts an island and runs it; returns what went wrong, in a line."""
    try:
        trial = _trial(island, ranges)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "island.tflite")
            path.write_bytes(integer_file(trial))
            file = TFLiteModel(path)
            noise = np.random.default_rng(0)
            file({name: noise.uniform(0, 1, spec.shape) for name, spec in file.inputs.items()})
    except Exception as error:  # The converter, the interpreter and users' layers raise any.
        return _line(error)
    return ""


def _trial(island: list[Any], ranges: list[FixedRange]) -> tf_keras.Model:
    """An island as a model of its own, between quantizations."""
    inputs, given = [], []
    for index, (x, limits) in enumerate(zip(_read(island), ranges, strict=True)):
        inputs.append(tf_keras.Input(x.shape[1:], dtype="float32", name=f"island_{index}"))
        y = _quantized(inputs[-1], f"island_{index}_quantize")
        if limits is not None:
            function = tf_keras.layers.Activation(PRESCRIBING[limits[0]])
            y = _quantized(function(y), f"island_{index}_prescribed", limits)
        given.append(y)

    def visit(node: Any, tensors: list[Any]) -> list[Any]:
        args, kwargs = arguments(node, tensors)
        return list(tf.nest.flatten(node.layer(*args, **kwargs)))

    wanted, name = tf.nest.flatten(island[-1].outputs), island[-1].layer.name
    outputs = propagate_calls(island, _read(island), given, wanted, visit)
    return tf_keras.Model(
        inputs,
        [
            _quantized(y, f"{name}_quantize_{index}") if y.dtype.is_floating else y
            for index, y in enumerate(outputs)
        ],
    )


def _quantized(x: Any, name: str, limits: FixedRange = None) -> Any:
    quantizer = EhapActivationQuantizer() if limits is None else EhapFixedQuantizer(*limits)
    layer = EhapQuantizeLayer(quantizer, name=name)
    y = layer(x)
    if limits is None:
        layer.quantizer_vars["batches"].assign(1.0)
    return y


def _line(error: Exception) -> str:
    """What an error says, in one line: of the converter's pages the first error among them."""
    text = str(error)
    found = re.search(r"error: (.+)", text)
    return (found.group(1) if found else text.strip().partition("\n")[0])[:200] or repr(error)
