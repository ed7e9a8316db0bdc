"""Which call of the dense network each call of the slim one stands for, and what is repaired."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.graph import Kernel, is_batch_norm, kernel_of, rows_at
from ehap_tf.models.kinds import function_kind
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.repair.behind import Behind, behind_both, way_behind
from ehap_tf.pruning.repair.walk import Key, Program, Step


@dataclasses.dataclass(frozen=True)
class Pair:
    """One call of a layer in the slim network, and the call that it stands for."""

    slim: Step
    dense: Step


@dataclasses.dataclass(frozen=True)
class Target:
    """A layer whose kernel is solved for.

    Attributes:
        path: of the layer in the slim network.
        slim: its kernel.
        dense: that of the layer which it was before.
        filters: which of the dense layer's filters it has, in its own order.
        pairs: all its calls, in the order of computation.
        norm: path of the BatchNorm that takes up the mean in its moving mean; None for the bias.
        keeps_mean: the mean of the output is of no consequence: a BatchNorm behind it takes the
            batch's.
        behind: the sum that the layer's only call goes into, whose other branches it makes up for,
            and the activation that reads it; None where there is nothing of it.
    """

    path: str
    slim: Kernel
    dense: Kernel
    filters: npt.NDArray[np.int64]
    pairs: tuple[Pair, ...]
    norm: str | None
    keeps_mean: bool
    behind: Behind | None = None

    def looks_at(self, pair: Pair) -> tuple[Key, Key]:
        """The input of the slim call, and what `wanted` takes of the dense one."""
        dense = pair.dense.outputs if _is_linear(pair.dense.layer) else pair.dense.inputs
        return pair.slim.inputs[0], dense[0]

    @property
    def takes_bias(self) -> bool:
        """Whether the mean goes into the layer's bias."""
        return self.norm is None and not self.keeps_mean

    @property
    def reads(self) -> tuple[list[Key], list[Key]]:
        """What the first call looks at, and what all of them do."""
        all_of_them = [key for pair in self.pairs for key in self.looks_at(pair)]
        summed = self.behind.reads if self.behind else []
        return [*all_of_them[:2], *summed], [*all_of_them, *summed]

    def wanted(self, tensor: tf.Tensor, positions: npt.NDArray[np.int64]) -> tf.Tensor:
        """The dense layer's outputs, before its activation, at some positions: one row for each."""
        if _is_linear(self.dense.layer):
            return rows_at(tensor, positions)
        return self.dense.outputs(tensor, positions)


def _is_linear(layer: tf_keras.layers.Layer) -> bool:
    return function_kind(getattr(layer, "activation", None)) == "linear"


def find_targets(
    model: tf_keras.Model, plan: PruningPlan, dense: Program, slim: Program
) -> list[Target]:
    """The layers that own kernels, in the order of their first calls in the slim network.

    Raises:
        ValueError: the slim network is not what the plan makes of the model.
    """
    graph = trace_channels(model, plan.residual)
    alive = plan.alive(graph)
    traced = {call.path: call for call in graph.calls.values()}
    pairs: dict[str, list[Pair]] = collections.defaultdict(list)
    for pair in _pairs(plan, dense, slim):
        pairs[pair.slim.path].append(pair)
    readers, dense_readers = slim.readers(), dense.readers()
    unsolved = {step for step in slim.steps if kernel_of(step.layer) is not None}
    targets = []
    for path, those in pairs.items():
        before = those[0].dense
        call = traced[before.path]
        kernels = kernel_of(those[0].slim.layer), kernel_of(before.layer)
        if kernels[0] is None or kernels[1] is None or not call.effect.weights:
            continue
        filters = np.flatnonzero(alive[call.effect.outputs[0]])
        if len(plan.implanted.get(before.path, ())):
            small = path != before.path or not len(plan.kept[before.path])
            filters = (plan.implanted if small else plan.kept)[before.path]
        found = kernels[0].filters
        if found != len(filters):
            raise ValueError(
                f"slim must be prune(model, plan): its layer {path!r} should have {len(filters)} "
                f"filters. Received: {found}"
            )
        norm, keeps_mean = _norm_behind(those, readers, slim)
        unsolved -= {pair.slim for pair in those}
        target = Target(path, kernels[0], kernels[1], filters, tuple(those), norm, keeps_mean)
        if len(those) == 1 and not keeps_mean:
            ways = (
                way_behind(those[0].slim, readers, len(filters)),
                way_behind(before, dense_readers, kernels[1].filters),
            )
            behind = behind_both(*ways, filters, slim, unsolved)
            target = dataclasses.replace(target, behind=behind)
        targets.append(target)
    return targets


def _pairs(plan: PruningPlan, dense: Program, slim: Program) -> list[Pair]:
    """Every call of a layer of the slim network that the dense one has, and of its implants."""
    calls, kept_paths = dense.calls(), set(slim.calls())
    # A layer that vanished from the slim network handed on its input.
    same: dict[Key, Key] = {}
    for step in dense.steps:
        if step.path not in kept_paths and len(step.inputs) == len(step.outputs):
            same.update(zip(step.outputs, (same.get(k, k) for k in step.inputs), strict=True))
    origin: dict[Key, Key] = dict(zip(slim.inputs, dense.inputs, strict=True))
    taken: set[tuple[str, Step]] = set()
    pairs = []
    for step in slim.steps:
        base = step.path if step.path in calls else _of_implant(step.path, plan)
        if base not in calls:  # what surgery put in between stands for what it reads
            origin.update((key, origin[step.inputs[0]]) for key in step.outputs if step.inputs)
            continue
        arriving = [origin.get(key) for key in step.inputs]
        waiting = [one for one in calls[base] if (step.path, one) not in taken]
        if not waiting:
            raise ValueError(
                f"slim must be prune(model, plan): it calls the layer {step.path!r} more often "
                "than model does"
            )
        fitting = [one for one in waiting if [same.get(k, k) for k in one.inputs] == arriving]
        chosen = (fitting or waiting)[0]
        taken.add((step.path, chosen))
        pairs.append(Pair(step, chosen))
        origin.update(zip(step.outputs, chosen.outputs, strict=False))
    return pairs


def _of_implant(path: str, plan: PruningPlan) -> str:
    """The layer whose 1x1 filters a layer that surgery added holds, if it does."""
    found = re.fullmatch(r"(.*)_implant(_\d+)?", path)
    return found.group(1) if found and len(plan.implanted.get(found.group(1), ())) else path


def _norm_behind(
    pairs: Sequence[Pair], readers: dict[Key, list[Step | None]], slim: Program
) -> tuple[str | None, bool]:
    """The BatchNorm that alone reads a layer and nothing else, and whether it is in training."""
    if not _is_linear(pairs[0].slim.layer):
        return None, False
    behind = [step for pair in pairs for step in readers[pair.slim.outputs[0]]]
    norms = {step.path if step is not None else "" for step in behind}
    first = behind[0] if behind else None
    if len(norms) != 1 or first is None or not is_batch_norm(first.layer):
        return None, False
    calls = slim.calls()[first.path]
    if len(calls) != len(behind) or list(first.layer.axis) != [first.node.outputs.shape.rank - 1]:
        return None, False
    in_training = {step.training and step.layer.trainable for step in calls}
    if len(in_training) > 1:
        return None, False
    return (None, True) if in_training == {True} else (first.path, False)
