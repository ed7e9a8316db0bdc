"""Where the removal of a filter acts: the place of its gate.

A gate multiplies a filter's channel by alpha = 1, and alpha -> 0 has to be what surgery does:
everything downstream sees zero. BatchNorm, a bias or an activation with f(0) != 0 makes something
of a zero, and surgery removes that too; the gate therefore stands behind the last such layer that
only this filter's channel passes through. Layers that keep zero at zero (ReLU, pooling) may stand
before or behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import TracedCall, nodes_in_order, trace_channels


@dataclasses.dataclass(frozen=True)
class Gate:
    """The gate of one layer's filters.

    Attributes:
        layer: the layer that owns the filters.
        after: name of the layer behind whose output the gate stands; may be `layer` itself.
        batch_norm: the first BatchNorm that only these filters pass through, or None.
        passed: names of the layers behind `layer` that only these filters pass through, those
            behind the gate included.
    """

    layer: str
    after: str
    batch_norm: tf_keras.layers.Layer | None
    passed: tuple[str, ...] = ()


def find_gates(model: tf_keras.Model) -> dict[str, Gate]:
    """The gate of every layer that owns filters, by layer name.

    The channels are followed from the layer along its single chain of consumers, as long as they
    stay this filter's own channels. Where a tensor has several consumers, or leaves a nested
    model, the chain ends.

    Raises:
        TypeError: the model is subclassed.
    """
    graph = trace_channels(model)
    consumers: dict[int, list[tuple[TracedCall | None, Any]]] = {}
    starts: dict[str, Any] = {}
    _collect(model, graph.calls, consumers, starts, set())
    gates = {}
    for name, ids in graph.ids.atoms.items():
        after, batch_norm = name, None
        passed: list[str] = []
        tensor = starts.get(name)
        while tensor is not None and len(consumers.get(id(tensor), ())) == 1:
            call, output = consumers[id(tensor)][0]
            if call is None or not _passes_on(call, ids):
                break
            passed.append(call.path)
            if not call.effect.preserves_zero:
                after = call.path
            if batch_norm is None and _is_batch_norm(call.layer):
                batch_norm = call.layer
            tensor = output
        gates[name] = Gate(name, after, batch_norm, tuple(passed))
    return gates


def _collect(
    model: tf_keras.Model,
    calls: dict[int, TracedCall],
    consumers: dict[int, list[tuple[TracedCall | None, Any]]],
    starts: dict[str, Any],
    visited: set[int],
) -> None:
    """Fills in who consumes each symbolic tensor, and where each layer that is called once ends."""
    visited.add(id(model))
    for tensor in model.outputs:
        consumers.setdefault(id(tensor), []).append((None, None))
    for node in nodes_in_order(model):
        outputs = tf.nest.flatten(node.outputs)
        call = calls.get(id(node))
        for tensor in node.keras_inputs:
            single = call if len(outputs) == 1 and len(node.keras_inputs) == 1 else None
            consumers.setdefault(id(tensor), []).append((single, outputs[0]))
        if call is not None:
            # A layer that is called twice has two chains; its gate stays behind the layer itself.
            starts[call.path] = None if call.path in starts else outputs[0]
        elif id(node.layer) not in visited:
            _collect(node.layer, calls, consumers, starts, visited)


def _passes_on(call: TracedCall, ids: np.ndarray) -> bool:
    """The call hands on exactly these channels, and is the only call of its layer."""
    called_once = not (call.shared and call.layer.weights)
    return called_once and np.array_equal(call.effect.outputs[0], ids)


def _is_batch_norm(layer: tf_keras.layers.Layer) -> bool:
    return isinstance(layer, tf_keras.layers.BatchNormalization)
