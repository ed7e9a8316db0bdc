"""Where the removal of a filter acts: the place of its gate.

A gate multiplies a filter's channel by alpha = 1, and alpha -> 0 has to be what surgery does:
everything downstream sees zero. BatchNorm, a bias or an activation with f(0) != 0 makes something
of a zero, and surgery removes that too; the gate therefore stands behind the last such layer that
only this filter's channel passes through. Layers that keep zero at zero (ReLU, pooling) may stand
before or behind it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.normalization.batch_normalization import BatchNormalizationBase

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
        nodes: `id()` of the nodes behind whose outputs the gate stands, one for each call of
            `layer`. A layer between them may serve others too, in calls of its own.
        ends: the same at the end of the chain, as far as the channels stay these filters' own.
    """

    layer: str
    after: str
    batch_norm: tf_keras.layers.Layer | None
    passed: tuple[str, ...]
    nodes: tuple[int, ...]
    ends: tuple[int, ...]


def find_gates(model: tf_keras.Model) -> dict[str, Gate]:
    """The gate of every layer that owns filters, by layer name.

    The channels are followed from each call of the layer along its single chain of consumers, as
    long as they stay this filter's own channels. Where a tensor has several consumers, or leaves a
    nested model, the chain ends.

    Raises:
        TypeError: the model is subclassed.
    """
    graph = trace_channels(model)
    consumers: dict[int, list[_Step | None]] = {}
    starts: dict[str, list[_Step]] = {}
    _collect(model, graph.calls, consumers, starts, set())
    gates = {}
    for name, ids in graph.ids.atoms.items():
        chains = [_chain(start, consumers, ids) for start in starts[name]]
        # Weights that serve other calls as well belong to no filter alone.
        own = list(
            itertools.takewhile(
                lambda call: not (call.shared and call.layer.weights),
                (step.call for step in chains[0]),
            )
        )
        gates[name] = Gate(
            layer=name,
            after=([name] + [call.path for call in own[1:] if not call.effect.preserves_zero])[-1],
            batch_norm=next((call.layer for call in own if _is_batch_norm(call.layer)), None),
            passed=tuple(call.path for call in own[1:]),
            nodes=tuple(_acts_at(chain) for chain in chains),
            ends=tuple(chain[-1].node for chain in chains),
        )
    return gates


@dataclasses.dataclass(frozen=True)
class _Step:
    """A call on a chain, with the `id()` of its node and its output."""

    node: int
    call: TracedCall
    output: Any


def _collect(
    model: tf_keras.Model,
    calls: dict[int, TracedCall],
    consumers: dict[int, list[_Step | None]],
    starts: dict[str, list[_Step]],
    visited: set[int],
) -> None:
    """Fills in who consumes each symbolic tensor, and the calls of each layer, by its name."""
    visited.add(id(model))
    for tensor in model.outputs:
        consumers.setdefault(id(tensor), []).append(None)
    for node in nodes_in_order(model):
        outputs = tf.nest.flatten(node.outputs)
        call = calls.get(id(node))
        step = None if call is None else _Step(id(node), call, outputs[0])
        for tensor in node.keras_inputs:
            single = step if len(outputs) == 1 and len(node.keras_inputs) == 1 else None
            consumers.setdefault(id(tensor), []).append(single)
        if step is not None:
            starts.setdefault(step.call.path, []).append(step)
        elif id(node.layer) not in visited:
            _collect(node.layer, calls, consumers, starts, visited)


def _chain(start: _Step, consumers: dict[int, list[_Step | None]], ids: np.ndarray) -> list[_Step]:
    """The calls that hand on exactly these channels to one reader after the other."""
    chain = [start]
    while len(readers := consumers.get(id(chain[-1].output), [])) == 1:
        (step,) = readers
        if step is None or step.call.layer is start.call.layer:
            break
        if not np.array_equal(step.call.effect.outputs[0], ids):
            break
        chain.append(step)
    return chain


def _acts_at(chain: list[_Step]) -> int:
    makes = [step.node for step in chain[1:] if not step.call.effect.preserves_zero]
    return makes[-1] if makes else chain[0].node


def _is_batch_norm(layer: tf_keras.layers.Layer) -> bool:
    return isinstance(layer, BatchNormalizationBase)
