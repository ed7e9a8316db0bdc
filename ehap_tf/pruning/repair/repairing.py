"""Kernels of a slim network solved again, so that its layers give what the dense network's give.

At every layer that owns a kernel, in order: X are the slim network's unfolded inputs, with all
layers before already repaired, Y the dense layer's outputs at the filters that stay, W0 the slim
kernel. W = W0 + (Xc^T Xc / m + ridge * t * I)^-1 Xc^T (Y - X W0)c / m, where c means centered, m is
the number of positions and t the mean diagonal of the first term. What is left of the mean goes
into the moving mean of the BatchNorm behind, or into the bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels import ChannelGraph, TracedCall, trace_channels
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.plan.pruning_plan import PruningPlan, require_plan
from ehap_tf.pruning.repair.images import first_images
from ehap_tf.pruning.repair.solver import Changes, Sampling, Solver
from ehap_tf.pruning.surgery.rebuild import Rebuilder
from ehap_tf.sensitivity.network.forward import mixes_examples


@either_keras()
def repair(
    slim: tf_keras.Model,
    model: tf_keras.Model,
    plan: PruningPlan,
    images: Any,
    examples: int = 512,
    ridge: float = 1e-2,
    *,
    positions: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> tf_keras.Model:
    """A copy of the slim model whose layers give what those of the dense model gave.

    No labels and no training: both networks are walked side by side, and each kernel whose inputs
    changed is solved again by least squares, for the outputs of the dense layer at the filters that
    stay. What is left of the mean goes into the moving mean of the BatchNorm that reads the layer,
    or else into its bias, which is added where there is none (the plan's `params_after` does not
    count it). A layer whose outputs are those of the dense one stays as it is.

    Convolutions (transposed, depthwise and grouped ones too) and Dense layers are solved for, of a
    separable convolution the pointwise kernel; `channels_first` layers and layers that compute
    something of their own stay as they are.

    Args:
        slim: `prune(model, plan)`.
        model: what was pruned.
        plan: what was kept of it.
        images: inputs of the model, preprocessed as for its training: arrays, a batched
            `tf.data.Dataset`, or pairs of them with labels, which are not looked at.
        examples: how many to look at; of arrays they are drawn at random, of a Dataset they are
            the first.
        ridge: how strongly changes of a kernel are kept small, in units of the mean square of an
            input.
        positions: of a layer's output, over all examples, drawn at random where there are more;
            64 for each weight of a filter, at least 8,000, when None.
        batch_size: examples that are computed at once; chosen by the size of the model's tensors
            when None. It changes nothing but memory and rounding.
        seed: of the examples and positions.
        progress: called after every layer with its errors relative to its outputs, root mean
            square: `error` as it came and `error_left` once repaired (on the positions looked at).

    Returns:
        A new model, not compiled.

    Raises:
        TypeError: a model is subclassed, or `plan` is no plan.
        ValueError: `examples`, `positions` or `batch_size` is less than 1, `ridge` is negative, the
            images are empty or do not fit the model, or the models and the plan do not belong
            together.
    """
    require_plan(plan)
    _require_at_least(1, examples=examples, positions=positions, batch_size=batch_size)
    _require_at_least(0, ridge=ridge)
    images = first_images(model, images, examples, seed)
    if mixes_examples(model):
        # A BatchNorm in training mode updates its statistics.
        model = Rebuilder(trace_channels(model)).rebuild(model)
    graph = trace_channels(slim)
    # What takes up a mean and has no bias works with one of zeros.
    biases = {
        target.path: {"bias": np.zeros(target.slim.filters)}
        for target in Solver(slim, model, plan, Sampling(positions, seed), ridge).targets
        if target.takes_bias and target.slim.bias is None
    }
    working = _Changed(graph, biases).rebuild(slim)
    solver = Solver(working, model, plan, Sampling(positions, seed), ridge)
    changes = solver.run(images, batch_size, progress)
    if biases.keys() <= changes.keys():
        return working
    # Layers that were right as they were need no bias.
    return _Changed(graph, changes).rebuild(slim)


def _require_at_least(low: float, **numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (value >= low and np.isfinite(value)):
            raise ValueError(f"{name} must be at least {low}. Received: {value}")


class _Changed(Rebuilder):
    """A copy with other values for some weights, and biases where there were none."""

    def __init__(self, graph: ChannelGraph, changes: Changes) -> None:
        super().__init__(graph)
        self._changes = changes

    def config(self, call: TracedCall) -> dict[str, Any]:
        config = super().config(call)
        if "bias" in self._changes.get(call.path, ()):
            config["use_bias"] = True
        return config

    def weights(self, call: TracedCall) -> list[Any]:
        values = super().weights(call)
        layer = call.layer
        places = {id(weight): place for place, weight in enumerate(layer.weights)}
        for attribute, value in self._changes.get(call.path, {}).items():
            weight = getattr(layer, attribute, None)
            if weight is None:
                values.append(value.astype(values[0].dtype))
            else:
                values[places[id(weight)]] = value.astype(weight.dtype.as_numpy_dtype)
        return values
