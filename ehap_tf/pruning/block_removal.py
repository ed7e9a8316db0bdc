"""Residual blocks removed whole: a network that is shallower, where thinner would not do.

A block here is a sum of a tensor and of something computed from it. Without the block the sum is
the tensor. What filters cannot do, this does: there are fewer layers. Each costs an integer file
some 500 bytes and its interpreter a call, however few filters it has.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import TracedCall, trace_channels
from ehap_tf.graph import (
    computes_like,
    layer_of,
    layer_paths,
    model_inside,
    nodes_in_order,
    operator_kind,
    propagate,
    relu_limit,
    traits_of,
)
from ehap_tf.models import require_rankable
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.surgery.rebuild import Rebuilder
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.network.network import Network, join_loss
from ehap_tf.sensitivity.supervised import supervised_part


@dataclasses.dataclass(frozen=True)
class _Block:
    """A sum, and which of its two inputs is computed from the other."""

    node: Any
    branch: int


@either_keras()
def residual_blocks(model: tf_keras.Model) -> list[str]:
    """The blocks that can be removed whole, by the names of their sums, in order.

    A sum of two tensors of one shape, one of which is computed from the other. The first block of a
    stage, whose shortcut has a convolution of its own, is none.

    Args:
        model: Functional or Sequential; in nested models names are paths, "backbone/add_1".

    Raises:
        TypeError: the model is subclassed.
    """
    trace_channels(model)  # says what is wrong with a model that cannot be followed
    return list(_find(model))


@either_keras()
def remove_blocks(model: tf_keras.Model, blocks: Iterable[str] | str) -> tf_keras.Model:
    """A new model without some residual blocks; the layers that stay keep names and weights.

    If two identical activations become adjacent, as a ReLU before and behind the sum, the second is
    dropped.
    The outputs are those of the model with the branches of the blocks zero, under the same names.

    Args:
        model: Functional or Sequential; it is left untouched.
        blocks: names out of `residual_blocks(model)`, or one name.

    Raises:
        TypeError: the model is subclassed.
        ValueError: a name that is not among them.
    """
    graph = trace_channels(model)
    found = _find(model)
    dropped = {id(found[name].node): found[name].branch for name in _chosen(blocks, found)}
    return _WithoutBlocks(graph, dropped, model.outputs).rebuild(model)


@either_keras()
def rank_blocks(
    model: tf_keras.Model,
    data: Any,
    loss: Any = None,
    count: int | None = None,
    blocks: Iterable[str] | str | None = None,
    batch_size: int | None = None,
    progress: ProgressCallback = no_progress,
) -> dict[str, float]:
    """The order in which residual blocks are missed least, measured.

    Removes the block without which the loss is lowest, then of those left the one without which it
    is lowest then, and so on: one pass over the data for each block that is left. Blocks inside
    the branch of one that was removed are removed with it, and not ranked.

    Args:
        model: Functional or Sequential.
        data: as for `rank_filters`.
        loss: as for `rank_filters`.
        count: how many blocks to remove; None goes on to the last.
        blocks: names out of `residual_blocks(model)` to choose from, or one; None: all of them.
        batch_size: examples computed at once.
        progress: called as `progress(losses measured, losses to measure, {})`.

    Returns:
        Name of a block -> the loss without it and those before it, in the order of removal.

    Raises:
        TypeError: the model is subclassed.
        ValueError: there are fewer blocks than `count` or fewer are left, a name is not among the
            model's, or the loss is not finite whichever block goes; as for `rank_filters`.
    """
    require_rankable(model)
    model, data, loss = supervised_part(model, data, loss)
    graph = trace_channels(model)
    found = _find(model)
    names = list(found) if blocks is None else _chosen(blocks, found)
    everything = count is None
    count = len(names) if count is None else count
    if not 0 <= count <= len(names):
        raise ValueError(
            f"count must be from 0 to {len(names)}, the number of residual blocks. "
            f"Received: {count}"
        )
    numbers = {id(found[name].node): number for number, name in enumerate(names)}
    gates = tf.Variable(tf.ones([len(names)]), trainable=False)
    branches = {id(found[name].node): found[name].branch for name in names}
    gated = _WithGates(graph, branches, numbers, gates).rebuild(model)
    batches = HessianBatch(data, batch_size)
    batches.require_fit(model, loss)
    measured = _mean_loss(join_loss(gated, loss, model, batches), batches)
    order: dict[str, float] = {}
    done = 0
    while len(order) < count:
        gone = {id(found[name].node): found[name].branch for name in order}
        needed = _needed(model, gone)
        left = [name for name in names if name not in order and id(found[name].node) in needed]
        if not left:
            if everything:
                break
            raise ValueError(
                f"count must be at most {len(order)} here: the other blocks are inside those that "
                f"are removed first, {', '.join(order)}. Received: {count}"
            )
        total = done + sum(range(len(left), max(len(left) - count + len(order), 0), -1))
        losses = {}
        for name in left:
            gates.assign([float(n not in order and n != name) for n in names])
            losses[name] = measured()
            done += 1
            progress(done, total, {})
        best = _lowest(losses, order)
        order[best] = losses[best]
    return order


def _lowest(losses: Mapping[str, float], order: Mapping[str, float]) -> str:
    """The block without which the loss is lowest, those of `order` being removed already."""
    finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        raise ValueError(
            "loss must be finite without some block. Received: NaN or infinity without each of "
            f"{', '.join(losses)}{' besides ' if order else ''}{', '.join(order)}; check the "
            f"weights and the data, or rank with count={len(order)}"
        )
    return min(finite, key=finite.__getitem__)


def _needed(model: tf_keras.Model, gone: Mapping[int, int]) -> set[int]:
    """`id()` of the nodes that the outputs are computed from.

    Args:
        model: with nested models.
        gone: `id()` of a sum's node -> which of its inputs is not looked at.
    """
    needed: set[int] = set()
    tensors = {id(tensor) for tensor in model.outputs}
    for node in reversed(list(nodes_in_order(model))):
        if tensors.isdisjoint(map(id, tf.nest.flatten(node.outputs))):
            continue
        needed.add(id(node))
        if (inside := model_inside(node.layer)) is not None:
            needed |= _needed(inside, gone)
        for place, tensor in enumerate(node.keras_inputs):
            if gone.get(id(node)) != place:
                tensors.add(id(tensor))
    return needed


def _chosen(blocks: Iterable[str] | str, found: Mapping[str, _Block]) -> list[str]:
    """The names without repetitions, all of them of blocks that were found."""
    names = [blocks] if isinstance(blocks, str) else list(dict.fromkeys(blocks))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"blocks must be among the model's residual blocks: {', '.join(found) or 'none'}. "
            f"Received: {', '.join(unknown)}"
        )
    return names


def _mean_loss(network: Network, data: HessianBatch) -> Callable[[], float]:
    @tf.function(reduce_retracing=True)
    def part(inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        del first
        return tf.reduce_sum(network.loss_values(labels, network.forward(inputs), weights))

    share = sum(batch.weights.sum() for batch in data) / data.examples

    def mean() -> float:
        return float(sum(float(part(*network.tensors(batch))) for batch in data) / share)

    return mean


def _find(model: tf_keras.Model, paths: Mapping[int, str] | None = None) -> dict[str, _Block]:
    paths = layer_paths(model) if paths is None else paths
    found: dict[str, _Block] = {}
    calls = collections.Counter(id(node.layer) for node in nodes_in_order(model))

    def visit(node: Any, behind: list[frozenset[int]]) -> list[frozenset[int]]:
        if (inside := model_inside(node.layer)) is not None:
            found.update(_find(inside, paths))
        elif calls[id(node.layer)] == 1 and (branch := _branch(node, behind)) is not None:
            found[paths[id(node.layer)]] = _Block(node, branch)
        before = frozenset(map(id, node.keras_inputs)).union(*behind)
        return [before] * len(tf.nest.flatten(node.outputs))

    propagate(model, [frozenset[int]()] * len(model.inputs), visit)
    return found


def _branch(node: Any, behind: Sequence[frozenset[int]]) -> int | None:
    """Which input of a sum is computed from the other one, if it is such a sum.

    Args:
        node: any call.
        behind: for each of its inputs the tensors, by `id()`, that it is computed from.
    """
    layer, tensors = node.layer, node.keras_inputs
    adds = "plain" if operator_kind(layer) == "add" else traits_of(layer).adds
    if not adds or len(tensors) != 2 or tuple(tensors[0].shape) != tuple(tensors[1].shape):
        return None
    first, second = map(id, tensors)
    if first in behind[1]:
        return 1
    # A scaled sum scales its second input, so that it is the branch that can go.
    if second in behind[0] and adds == "plain":
        return 0
    return None


class _WithoutBlocks(Rebuilder):
    def __init__(self, graph: Any, dropped: Mapping[int, int], outputs: list[Any]) -> None:
        super().__init__(graph)
        self._dropped = dropped
        self._outputs = {id(tensor) for tensor in outputs}

    def apply(self, call: TracedCall, node: Any, tensors: list[Any]) -> list[Any]:
        # An output has the name of the layer that it comes from.
        names_output = id(node.outputs) in self._outputs
        if id(node) in self._dropped:
            tensor = tensors[1 - self._dropped[id(node)]]
            if names_output:
                name, dtype = call.layer.name, node.outputs.dtype
                tensor = tf_keras.layers.Activation("linear", name=name, dtype=dtype)(tensor)
            return [tensor]
        if not names_output and len(tensors) == 1 and _repeats(call.layer, tensors[0]):
            return tensors
        return super().apply(call, node, tensors)


def _repeats(layer: tf_keras.layers.Layer, tensor: Any) -> bool:
    """Whether a ReLU sees the output of the same ReLU, which it leaves as it is."""
    before = layer_of(tensor)
    linear = computes_like(layer, tf_keras.layers.Activation) and (
        layer.activation is tf_keras.activations.linear
    )
    return (
        type(layer) is type(before)
        and (linear or relu_limit(layer) is not None)
        and {**layer.get_config(), "name": ""} == {**before.get_config(), "name": ""}
    )


class _WithGates(Rebuilder):
    """Multiplies each block's branch by a number of its own."""

    def __init__(
        self,
        graph: Any,
        branches: Mapping[int, int],
        numbers: Mapping[int, int],
        gates: tf.Variable,
    ) -> None:
        super().__init__(graph)
        self._branches, self._numbers, self._gates = branches, numbers, gates

    def apply(self, call: TracedCall, node: Any, tensors: list[Any]) -> list[Any]:
        if id(node) in self._branches:
            branch, number = self._branches[id(node)], self._numbers[id(node)]
            tensors = list(tensors)
            gate = _Gate(self._gates, number, dtype=tensors[branch].dtype)
            tensors[branch] = gate(tensors[branch])
        return super().apply(call, node, tensors)


class _Gate(tf_keras.layers.Layer):
    """Its input, or zero where the gate is: infinity times zero would not be."""

    def __init__(self, gates: tf.Variable, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gates, self._number = gates, number

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.where(self._gates[self._number] > 0, inputs, tf.zeros((), inputs.dtype))
