"""The channel graph of a functional model: every call of every layer, with its channel ids."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

# Importing a module of rules registers them.
from ehap_tf.channels import (  # noqa: F401
    convolution_rules,
    elementwise_rules,
    merge_rules,
    operator_rules,
    recurrent_rules,
    shape_rules,
    slices,
)
from ehap_tf.channels.effect_checks import require_fitting_effect
from ehap_tf.channels.ids import ChannelIds, Flags, Ids
from ehap_tf.channels.macs import macs_of
from ehap_tf.channels.rules import (
    Call,
    Effect,
    MacTerm,
    channels,
    frozen,
    rule_of,
    unknown,
    weight_of,
)
from ehap_tf.graph import (
    is_nested_model,
    layer_paths,
    model_inside,
    nodes_as_computed,
    nodes_once,
    propagate,
)

RESIDUAL_MODES = ("union", "tied")


@dataclasses.dataclass(frozen=True)
class TracedCall:
    """One call of a layer.

    Attributes:
        path: of the layer.
        layer: the layer.
        arriving: the ids that arrive.
        effect: what the layer's rule made of them.
        shared: the layer is called in several places.
        times: how often the call is computed: once for each call of the models around it, times
            the steps that a TimeDistributed calls it for; NaN where their number is not fixed.
        macs: its multiply-accumulates for one example, a sum of terms.
        uncounted: why it has more than these, or None.
    """

    path: str
    layer: tf_keras.layers.Layer
    arriving: tuple[Ids, ...]
    effect: Effect
    shared: bool
    times: float
    macs: tuple[MacTerm, ...]
    uncounted: str | None


@dataclasses.dataclass(frozen=True)
class ChannelGraph:
    """Every call of a model, in an order in which the model can be computed.

    Attributes:
        calls: `id()` of a node -> its call; a nested model's calls are there once.
        nested_inputs: `id()` of a nested model -> the ids of its inputs.
        nested_arriving: `id()` of a node that calls a nested model -> the ids that arrive there.
        outputs: per model output the ids that arrive and the ids that it must have.
        ids: the table of channel ids.
        residual: "union" or "tied".
        notes: layer path -> why channels around it are frozen.
    """

    calls: dict[int, TracedCall]
    nested_inputs: dict[int, list[Ids]]
    nested_arriving: dict[int, list[Ids]]
    outputs: list[tuple[Ids, Ids]]
    ids: ChannelIds
    residual: str
    notes: dict[str, str]

    def costs(
        self, alive: Flags, implants: Mapping[str, int] | None = None
    ) -> dict[str, tuple[int, float]]:
        """Parameters and multiply-accumulates of one example, layer by layer.

        Args:
            alive: which channel ids are there.
            implants: layer path -> how many of its filters are 1x1.

        Returns:
            Layer path -> numbers in all its weights, trained or not (a layer that is called twice
            counts once), and multiply-accumulates of all its calls, NaN for a size not fixed.
        """
        costs: dict[str, tuple[int, float]] = {}
        for call in self.calls.values():
            if call.effect.pass_through:
                continue
            saved = self._saved(call, alive, implants)
            params, macs = costs.get(call.path, (self._parameters(call, alive) - saved, 0.0))
            for term in call.macs:
                macs += call.times * term.count(alive)
            if saved:
                kernel_positions, kernel = call.effect.implantable or 1, call.macs[0]
                macs -= call.times * kernel.factor * saved / kernel_positions
            costs[call.path] = (params, macs)
        return costs

    def uncounted(self) -> dict[str, str]:
        """Layer path -> why it has multiply-accumulates that `costs` does not count."""
        return {call.path: call.uncounted for call in self.calls.values() if call.uncounted}

    def count_parameters(self, alive: Flags, implants: Mapping[str, int] | None = None) -> int:
        """Parameters of all layers, as `costs` counts them."""
        return sum(params for params, _ in self.costs(alive, implants).values())

    def count_macs(self, alive: Flags, implants: Mapping[str, int] | None = None) -> float:
        """Multiply-accumulates of one example, as in `costs`."""
        total = sum(macs for _, macs in self.costs(alive, implants).values())
        return total if np.isnan(total) else round(total)

    def _parameters(self, call: TracedCall, alive: Flags) -> int:
        axes_of = weight_axes(call)
        total = 0
        for weight in call.layer.weights:
            axes = axes_of.get(id(weight), (None,) * len(weight.shape))
            total += math.prod(
                int(length) if ids is None else int(alive[ids].sum())
                for length, ids in zip(weight.shape, axes, strict=True)
            )
        return total

    @property
    def filters(self) -> dict[str, tuple[str, int]]:
        """Layer path -> the weight that holds the layer's filters, and the axis that counts them.

        Also where none of them can be removed.
        """
        return {c.path: c.effect.filters for c in self.calls.values() if c.effect.filters}

    @property
    def implantable(self) -> set[str]:
        """Paths of the layers whose filters can become 1x1."""
        return {call.path for call in self.calls.values() if call.effect.implantable}

    def frozen_filters(self) -> dict[str, tuple[int, str]]:
        """Layer path -> how many of its filters cannot be removed, and why, where there are any."""
        found = {}
        for layer, ids in self.ids.atoms.items():
            reasons = [why for atom in ids.tolist() if (why := self.ids.frozen_reason(atom))]
            if reasons:
                found[layer] = (len(reasons), reasons[0])
        return found

    def _saved(self, call: TracedCall, alive: Flags, implants: Mapping[str, int] | None) -> int:
        """Kernel entries that the 1x1 filters of a layer do without."""
        number = (implants or {}).get(call.path, 0)
        if not number:
            return 0
        assert call.effect.implantable is not None
        inputs = int(alive[call.effect.inputs[0]].sum())
        return number * inputs * (call.effect.implantable - 1)


def weight_axes(call: TracedCall) -> dict[int, tuple[Ids | None, ...]]:
    """For each weight of the call's layer, by its `id()`, the channel ids of its axes."""
    found = {}
    for attribute, axes in call.effect.weights.items():
        weight = weight_of(call.layer, attribute)
        if weight is not None:
            found[id(weight)] = axes
    return found


def trace_channels(model: tf_keras.Model, residual: str = "union") -> ChannelGraph:
    """Follows the channels of a model from its inputs to its outputs.

    Args:
        model: a Functional or Sequential model, built.
        residual: "union" lets each branch of a sum keep its own filters; "tied" makes the
            channels that a sum lines up live or die together.

    Raises:
        TypeError: the model is subclassed, or a layer's rule returns no effect.
        ValueError: `residual` is not known, two layers have the same path, or what a layer's rule
            says does not fit the layer.
    """
    if residual not in RESIDUAL_MODES:
        raise ValueError(f"residual must be one of {RESIDUAL_MODES}. Received: {residual!r}")
    if not is_nested_model(model):
        raise TypeError(
            "the model must be Functional or Sequential and built, so that its layers can be "
            f"followed. Received: {type(model).__name__} {model.name!r}; build it with "
            "tf_keras.Model(inputs, outputs)"
        )
    tracer = _Tracer(model, residual)
    inputs = [
        tracer.ids.constants(channels(tuple(tensor.shape)), "model input")
        for tensor in model.inputs
    ]
    outputs = []
    for arriving in tracer.trace(model, inputs):
        wanted = tracer.ids.settle(arriving, "model output")
        tracer.ids.freeze(wanted, "model output")
        outputs.append((arriving, wanted))
    return ChannelGraph(
        calls=tracer.calls,
        nested_inputs=tracer.nested_inputs,
        nested_arriving=tracer.nested_arriving,
        outputs=outputs,
        ids=tracer.ids,
        residual=residual,
        notes=tracer.notes,
    )


class _Tracer:
    def __init__(self, model: tf_keras.Model, residual: str) -> None:
        self.ids = ChannelIds()
        self.calls: dict[int, TracedCall] = {}
        self.nested_inputs: dict[int, list[Ids]] = {}
        self.nested_arriving: dict[int, list[Ids]] = {}
        self.notes: dict[str, str] = {}
        self._residual = residual
        self._paths = layer_paths(model)
        self._times: dict[int, float] = collections.defaultdict(float)
        for node, times in nodes_as_computed(model):
            self._times[id(node)] += times
        self._places = collections.Counter(id(node.layer) for node in nodes_once(model))
        self._first_call: dict[int, TracedCall] = {}
        self._nested_outputs: dict[int, list[Ids]] = {}

    def trace(self, model: tf_keras.Model, inputs: list[Ids]) -> list[Ids]:
        return propagate(model, inputs, self._trace_node)

    def _trace_node(self, node: Any, arriving: list[Ids]) -> Sequence[Ids]:
        inside = model_inside(node.layer)
        if inside is None:
            call = self._trace_call(node, tuple(arriving))
            self.calls[id(node)] = call
            return call.effect.outputs
        self.nested_arriving[id(node)] = arriving
        return [
            # One number per step: the steps are the last axis.
            ids if len(inner.shape) > 1 else self.ids.constants(channels(outer), "steps")
            for ids, inner, outer in zip(
                self._trace_nested(inside, arriving),
                inside.outputs,
                (tuple(tensor.shape) for tensor in tf.nest.flatten(node.outputs)),
                strict=True,
            )
        ]

    def _trace_nested(self, model: tf_keras.Model, arriving: list[Ids]) -> list[Ids]:
        if id(model) in self.nested_inputs:
            # The same inner graph serves every call, so the channels of its inputs live together.
            first = self.nested_inputs[id(model)]
            for a, b in zip(first, self._settled(model, arriving), strict=True):
                self.ids.tie(a, b)
            return self._nested_outputs[id(model)]
        if self._places[id(model)] > 1:
            arriving = self._settled(model, arriving)
        self.nested_inputs[id(model)] = arriving
        self._nested_outputs[id(model)] = self.trace(model, arriving)
        return self._nested_outputs[id(model)]

    def _settled(self, layer: tf_keras.layers.Layer, arriving: Sequence[Ids]) -> list[Ids]:
        """Without zeros, so that all calls of one layer can be given the same channels."""
        reason = f"{self._paths[id(layer)]!r} is called more than once"
        return [self.ids.settle(ids, reason) for ids in arriving]

    def _trace_call(self, node: Any, arriving: tuple[Ids, ...]) -> TracedCall:
        layer = node.layer
        path = self._paths[id(layer)]
        shared = self._places[id(layer)] > 1
        call = Call(
            layer=layer,
            path=path,
            ids=self.ids,
            inputs=tuple(self._settled(layer, arriving)) if shared and layer.weights else arriving,
            input_shapes=tuple(tuple(t.shape) for t in node.keras_inputs),
            output_shapes=tuple(tuple(t.shape) for t in tf.nest.flatten(node.outputs)),
            residual=self._residual,
            shared=shared,
            node=node,
        )
        rule = rule_of(layer)
        if rule is not unknown and any(s[1:] and s[-1] is None for s in call.input_shapes):
            effect = frozen(call, f"{path!r} is given an axis of unknown size in place of channels")
        else:
            effect = rule(call)
            require_fitting_effect(effect, call, rule)
        times = self._times[id(node)]
        traced = TracedCall(path, layer, arriving, effect, shared, times, *macs_of(call, effect))
        first = self._first_call.setdefault(id(layer), traced)
        if first is not traced and (effect.bound or layer.weights):
            for a, b in zip(first.effect.inputs, effect.inputs, strict=True):
                self.ids.tie(a, b)
        if effect.note:
            self.notes.setdefault(path, effect.note)
        return traced


__all__ = [
    "RESIDUAL_MODES",
    "ChannelGraph",
    "TracedCall",
    "trace_channels",
    "weight_axes",
]
