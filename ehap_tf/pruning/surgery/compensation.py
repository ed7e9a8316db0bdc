"""The mean of what was removed, put into the biases that come next.

Where a convolution or dense layer reads removed channels, it loses what they contributed on
average. A BatchNorm that reads its output takes the loss up when its statistics are estimated again
(`recalibrate`); where there is none, or a non-linearity in between, the bias can.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ZERO, Flags, TracedCall, trace_channels
from ehap_tf.data import as_dataset
from ehap_tf.graph import is_batch_norm, kernel_of, layer_calls, layer_paths
from ehap_tf.models import require_inputs
from ehap_tf.models.keras3 import either_keras
from ehap_tf.models.kinds import function_kind
from ehap_tf.pruning.plan.pruning_plan import PruningPlan, require_plan
from ehap_tf.pruning.surgery.rebuild import Rebuilder
from ehap_tf.sensitivity.gates.gate_placement import find_gates
from ehap_tf.sensitivity.network.forward import run_graph

Floats = npt.NDArray[np.float64]


@either_keras()
def compensate(
    slim: tf_keras.Model, model: tf_keras.Model, plan: PruningPlan, data: Any, batches: int = 32
) -> tf_keras.Model:
    """A copy of the slim model whose biases make up for the mean of what was removed.

    For each convolution or dense layer that reads removed channels, unless `recalibrate` makes up
    for them: bias += sum over removed inputs of kernel times mean input, means taken over `batches`
    batches in the model before pruning. `recalibrate` does where a BatchNorm reads the layer's
    output itself, no activation or other layer between, and is trainable and called in training
    mode, that is, not with `training=False`. A layer without bias gets one, which the plan's
    `params_after` does not count. Exact where a removed channel is constant, up to the border of
    "same" padding. Transposed, separable and grouped convolutions and layers with 1x1 implants stay
    as they are. So does what reads a sum that keeps a channel of which one input is removed
    (`residual="union"`): the sum goes without that input's mean.

    Args:
        slim: `prune(model, plan)`.
        model: what was pruned.
        plan: what was kept of it.
        data: `(x, y)` arrays or a batched `tf.data.Dataset`, of training images.
        batches: how many batches to look at; fewer when the data ends before.

    Raises:
        TypeError: a model is subclassed, or `plan` is no plan.
        ValueError: `batches` is less than 1, the data is empty, or the data or the plan does not
            fit the model.
    """
    require_plan(plan)
    if batches < 1:
        raise ValueError(f"batches must be at least 1. Received: {batches}")
    graph = trace_channels(model, plan.residual)
    alive = plan.alive(graph)
    alive[ZERO] = True  # always zero: there is nothing to make up for
    readers = _readers(model, plan, list(graph.calls.values()), alive)
    means = _mean_inputs(model, set(readers), data, batches) if readers else {}
    additions = {
        path: _lost(readers[path], means[path], alive) for path in readers if path in means
    }
    return _WithBiases(trace_channels(slim, plan.residual), additions).rebuild(slim)


def _readers(
    model: tf_keras.Model, plan: PruningPlan, calls: list[TracedCall], alive: Flags
) -> dict[str, TracedCall]:
    """The layers that lose inputs and have to make up for them by themselves."""
    gates = find_gates(model)
    paths = layer_paths(model)
    estimated = {
        paths[id(layer)]
        for layer, trains in layer_calls(model, training=True)
        if trains and layer.trainable and is_batch_norm(layer)
    }
    found = {}
    for call in calls:
        owner = call.effect.filters
        if owner != ("kernel", -1) or kernel_of(call.layer) is None:
            continue  # a transposed or separable one, or one of the user's own
        if call.effect.weights["kernel"][-2] is not call.effect.inputs[0]:
            continue  # a grouped one
        if len(plan.implanted.get(call.path, ())):
            continue
        passed = gates[call.path].passed if call.path in gates else ()
        # Behind a non-linearity a BatchNorm sees less of the loss, or nothing.
        if function_kind(call.layer.activation) == "linear" and estimated.intersection(passed[:1]):
            continue
        if not alive[call.effect.inputs[0]].all():
            found[call.path] = call
    return found


def _mean_inputs(
    model: tf_keras.Model, names: set[str], data: Any, batches: int
) -> dict[str, Floats]:
    """The mean of each input channel of some layers, over examples, positions and calls."""
    paths = layer_paths(model)

    @tf.function(reduce_retracing=True, autograph=False)
    def sums(inputs: Any) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        found: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}

        def look(node: Any, tensor: Any) -> Any:
            name = paths[id(node.layer)]
            if name in names:
                flat = tf.reshape(tf.cast(tensor, tf.float32), [-1, tensor.shape[-1]])
                total, count = found.get(name, (tf.zeros([]), tf.zeros([], tf.int32)))
                found[name] = (total + tf.reduce_sum(flat, axis=0), count + tf.shape(flat)[0])
            return tensor

        run_graph(model, inputs, before=look)
        return found

    totals: dict[str, Floats] = {}
    counts: dict[str, int] = {}
    for x, *_ in itertools.islice(as_dataset(data, weighted=True), batches):
        require_inputs(model, x)
        for name, (total, count) in sums(x).items():
            totals[name] = totals.get(name, 0) + np.asarray(total, np.float64)
            counts[name] = counts.get(name, 0) + int(count)
    return {name: total / counts[name] for name, total in totals.items()}


def _lost(call: TracedCall, means: Floats, alive: Flags) -> Floats:
    """What a layer loses on average, one number for each of its filters that stay."""
    kernel = np.asarray(call.layer.kernel, np.float64)
    by_input = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
    gone = ~alive[call.effect.inputs[0]]
    stays = alive[call.effect.outputs[0]]
    lost: Floats = means[gone] @ by_input[gone][:, stays]
    return lost


class _WithBiases(Rebuilder):
    """A copy with something added to biases."""

    def __init__(self, graph: Any, additions: Mapping[str, Floats]) -> None:
        super().__init__(graph)
        self._additions = additions

    def config(self, call: TracedCall) -> dict[str, Any]:
        config = super().config(call)
        if call.path in self._additions:
            config["use_bias"] = True
        return config

    def weights(self, call: TracedCall) -> list[Any]:
        values = super().weights(call)
        if call.path not in self._additions:
            return values
        kernel, *bias = values
        addition = self._additions[call.path].astype(kernel.dtype)
        return [kernel, bias[0] + addition if bias else addition]
