"""Where the removal of a filter acts: the place of its gate.

A gate multiplies a filter's channel by alpha = 1, and alpha -> 0 has to be what surgery does:
everything downstream sees zero. BatchNorm, a bias or an activation with f(0) != 0 makes something
of a zero, and surgery removes that too; the gate therefore stands behind the last such layer that
only this filter's channel passes through. Layers that keep zero at zero (ReLU, pooling) may stand
before or behind it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import TracedCall, trace_channels
from ehap_tf.graph import is_batch_norm, model_inside, nodes_in_order, nodes_once


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
    long as they stay this filter's own channels, into and out of nested models that are called
    once. Where a tensor has several consumers, or leaves another nested model, the chain ends.

    Raises:
        TypeError: the model is subclassed.
    """
    graph = trace_channels(model)
    inside = (model_inside(node.layer) for node in nodes_once(model))
    calls = _Calls(graph.calls, collections.Counter(map(id, inside)))
    calls.collect(model)
    gates = {}
    for name, ids in graph.ids.atoms.items():
        chains = [_chain(start, calls.consumers, ids) for start in calls.starts[name]]
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
            batch_norm=next((call.layer for call in own if is_batch_norm(call.layer)), None),
            passed=tuple(call.path for call in own[1:]),
            nodes=tuple(_acts_at(chain) for chain in chains),
            ends=tuple(chain[-1].node for chain in chains),
        )
    return gates


@dataclasses.dataclass(frozen=True)
class _Step:
    """A call on a chain, with the `id()` of its node and that of its output's tensor."""

    node: int
    call: TracedCall
    output: int


class _Calls:
    """Who consumes each symbolic tensor, by its `id()`, and the calls of each layer, by its name.

    A tensor that enters or leaves a nested model with one call is the one around the model.

    Args:
        traced: `id()` of a node -> its call.
        times: `id()` of a nested model -> in how many places it is called.
    """

    def __init__(self, traced: Mapping[int, TracedCall], times: Mapping[int, int]) -> None:
        self.consumers: dict[int, list[_Step | None]] = {}
        self.starts: dict[str, list[_Step]] = {}
        self._traced, self._times = traced, times
        self._around: dict[int, int] = {}
        self._visited: set[int] = set()

    def collect(self, model: tf_keras.Model, single: bool = False) -> None:
        """Looks at the calls of a model; of one with a single call the reader is around it."""
        self._visited.add(id(model))
        for tensor in () if single else model.outputs:
            self.consumers.setdefault(self._key(tensor), []).append(None)
        for node in nodes_in_order(model):
            outputs, inside = tf.nest.flatten(node.outputs), model_inside(node.layer)
            if inside is not None:
                self._open(inside, node.keras_inputs, outputs)
                continue
            step = _Step(id(node), self._traced[id(node)], self._key(outputs[0]))
            self.starts.setdefault(step.call.path, []).append(step)
            is_single = len(outputs) == 1 and len(node.keras_inputs) == 1
            for tensor in node.keras_inputs:
                self.consumers.setdefault(self._key(tensor), []).append(step if is_single else None)

    def _open(self, model: tf_keras.Model, inputs: list[Any], outputs: list[Any]) -> None:
        of_inside = [*model.outputs, *model.inputs]
        single = self._times[id(model)] == 1 and len(set(map(id, of_inside))) == len(of_inside)
        if single:
            for inner, outer in zip(of_inside, [*outputs, *inputs], strict=True):
                self._around[id(inner)] = self._key(outer)
        else:
            for tensor in inputs:
                self.consumers.setdefault(self._key(tensor), []).append(None)
        if id(model) not in self._visited:
            self.collect(model, single)

    def _key(self, tensor: Any) -> int:
        return self._around.get(id(tensor), id(tensor))


def _chain(start: _Step, consumers: dict[int, list[_Step | None]], ids: np.ndarray) -> list[_Step]:
    """The calls that hand on exactly these channels to one reader after the other."""
    chain = [start]
    while len(readers := consumers.get(chain[-1].output, [])) == 1:
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
