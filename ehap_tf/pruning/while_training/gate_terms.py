"""Gradients on gates, read off the gradients that training computes anyway.

A gate alpha = 1 on a channel behind BatchNorm scales gamma and beta, so that the loss's gradient
on it is gamma dL/dgamma + beta dL/dbeta; behind a layer without BatchNorm it is the sum of weight
times gradient over the filter and its bias (Molchanov et al. 2019, arXiv 1906.10771). No second
pass over the network is needed. A BatchNorm further down that reads the channel among others
(behind a Concatenate, or behind the sum in tied mode) maps zero to non-zero too, which a
removal takes away; its term is added. In training mode BatchNorm does not feel the scale of what it
reads, so that nothing counts twice.

The form on weights, sum of weight times gradient over a filter behind BatchNorm, is zero for the
same reason while training; only `rank_filters`, which runs in inference mode, has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ChannelGraph, Ids, TracedCall, weight_axes, zero_at_zero
from ehap_tf.graph import PRODUCTS, is_batch_norm, operator_kind
from ehap_tf.sensitivity.gates.gate_placement import Gate, find_gates

NOBODY = -1
"""The group of a channel that is not scored."""


@dataclasses.dataclass(frozen=True)
class GateTerm:
    """One layer's part of the gradients on gates.

    Attributes:
        weights: weights with the axis that carries the channels; weight times gradient, summed
            over all other axes and all weights, is the term.
        groups: for each channel the number of its group.
    """

    weights: tuple[tuple[tf.Variable, int], ...]
    groups: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class GateTerms:
    """How gradients on gates follow from gradients on weights.

    Attributes:
        terms: to be added up, group by group.
        count: number of groups: filters that live or die together.
        groups: layer path -> for each of its filters the number of its group; only layers whose
            filters are scored.
        missing: layer path -> why its filters are not scored.
    """

    terms: Sequence[GateTerm]
    count: int
    groups: Mapping[str, npt.NDArray[np.int64]]
    missing: Mapping[str, str]

    def gradient(self, gradient_of: Mapping[int, tf.Tensor]) -> tf.Tensor:
        """The gradient on the gate of each group.

        Args:
            gradient_of: `id()` of a weight -> the gradient of the loss on it; a weight without one
                counts nothing.
        """
        total = tf.zeros([self.count])
        for term in self.terms:
            sums = [
                tf.reduce_sum(
                    tf.cast(gradient_of[id(weight)], tf.float32) * tf.cast(weight, tf.float32),
                    [other for other in range(weight.shape.rank) if other != axis],
                )
                for weight, axis in term.weights
                if id(weight) in gradient_of
            ]
            if sums:
                total += tf.math.unsorted_segment_sum(tf.add_n(sums), term.groups, self.count)
        return total


def find_gate_terms(model: tf_keras.Model, graph: ChannelGraph) -> GateTerms:
    """Finds for every filter the weights whose gradients give that on its gate.

    Args:
        model: the model.
        graph: its trace; which filters live or die together is that of its residual mode.
    """
    calls = {call.path: call for call in graph.calls.values()}
    gates = find_gates(model)
    roots = {layer: graph.ids.groups(atoms) for layer, atoms in graph.ids.atoms.items()}
    factors = _factors(graph)
    unreadable: dict[int, str] = {}  # root -> why
    needs_another: dict[int, str] = {}
    found: list[tuple[tuple[tuple[tf.Variable, int], ...], Ids]] = []

    def add(call: TracedCall, channels: Ids, reasons: dict[int, str]) -> None:
        weights, reason = _scaling_weights(call)
        if reason:
            reasons.update(dict.fromkeys(channels.tolist(), reason))
        else:
            found.append((weights, channels))

    for layer, gate in gates.items():
        # One factor of a product at zero is enough: squeeze and excitation may end in a sigmoid.
        is_factor = np.isin(graph.ids.atoms[layer], factors).all()
        add(calls[gate.after], roots[layer], needs_another if is_factor else unreadable)
    passed = _passed_by(gates, roots)
    known = np.unique(np.concatenate([*roots.values(), np.zeros(0, np.int64)]))
    for call in calls.values():
        if is_batch_norm(call.layer) and call.effect.weights:
            channels = graph.ids.groups(call.effect.outputs[0])
            mine = passed.get(call.path, set())
            others = np.isin(channels, known) & ~np.isin(channels, list(mine))
            if others.any():
                add(call, np.where(others, channels, NOBODY), unreadable)
    readable = np.concatenate([*(channels for _, channels in found), np.zeros(0, np.int64)])
    for root in needs_another.keys() - set(readable.tolist()):
        unreadable.setdefault(root, needs_another[root])
    missing = {}
    for layer, channels in roots.items():
        if layer not in gates:
            missing[layer] = "its channels cannot be followed"
        elif reasons := [unreadable[root] for root in channels.tolist() if root in unreadable]:
            missing[layer] = reasons[0]
    scored = {layer: channels for layer, channels in roots.items() if layer not in missing}
    numbers = np.unique(np.concatenate([*scored.values(), np.zeros(0, np.int64)]))
    return GateTerms(
        terms=[GateTerm(weights, _numbered(channels, numbers)) for weights, channels in found],
        count=len(numbers),
        groups={layer: _numbered(channels, numbers) for layer, channels in scored.items()},
        missing=missing,
    )


def _passed_by(gates: Mapping[str, Gate], roots: Mapping[str, Ids]) -> dict[str, set[int]]:
    """Layer path -> the groups whose own chain runs through it."""
    passed: dict[str, set[int]] = {}
    for layer, gate in gates.items():
        for path in gate.passed:
            passed.setdefault(path, set()).update(roots[layer].tolist())
    return passed


def _factors(graph: ChannelGraph) -> Ids:
    """The ids of channels that are multiplied with others."""
    found = [np.zeros(0, np.int64)]
    for call in graph.calls.values():
        if len(call.effect.inputs) > 1 and (
            isinstance(call.layer, tf_keras.layers.Multiply)
            or operator_kind(call.layer) in PRODUCTS
        ):
            found += call.effect.inputs
            found += call.arriving
    return np.concatenate(found)


def _scaling_weights(call: TracedCall) -> tuple[tuple[tuple[tf.Variable, int], ...], str]:
    """The weights that a gate behind the layer scales, with their channel axis; or why none do."""
    layer = call.layer
    name = f"{call.path!r} ({type(layer).__name__})"
    if is_batch_norm(layer) and not layer.scale:
        return (), f"{name} has no gamma"
    if not zero_at_zero(getattr(layer, "activation", None)):
        return (), f"the activation of {name} is not zero at zero"
    trainable = {id(weight) for weight in layer.trainable_weights}
    axes_of = weight_axes(call)
    weights = []
    for weight in layer.weights:
        axes = [
            axis
            for axis, ids in enumerate(axes_of.get(id(weight), ()))
            if ids is not None and np.array_equal(ids, call.effect.outputs[0])
        ]
        if id(weight) in trainable and axes:
            weights.append((weight, axes[-1]))
    return tuple(weights), "" if weights else f"{name} has no trainable weights"


def _numbered(channels: Ids, numbers: Ids) -> npt.NDArray[np.int64]:
    """Channels by the place of their group in `numbers`, or `NOBODY`."""
    places = np.minimum(np.searchsorted(numbers, channels), max(len(numbers) - 1, 0))
    if not len(numbers):
        return np.full(len(channels), NOBODY)
    return np.where(numbers[places] == channels, places, NOBODY)
