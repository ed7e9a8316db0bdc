"""Pruning a slim model further: plans that speak of the model that everything started from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from ehap_tf.channels import is_depthwise, trace_channels
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.plan.selection import plan_from_flags, plan_pruning


def plan_further(
    model: tf_keras.Model,
    before: PruningPlan,
    scores: Mapping[str, npt.ArrayLike],
    **options: Any,
) -> PruningPlan:
    """A plan of `model` that removes more than `before` does.

    Limits and targets count from `model`: filters that are gone are the first ones of its list.

    Args:
        model: the model of the plan `before`.
        before: what is kept so far; without 1x1 filters.
        scores: layer path -> one score per filter of `prune(model, before)`.
        **options: of `plan_pruning`; `residual` is that of `before`.

    Raises:
        ValueError: as for `plan_pruning`, or scores do not fit what is kept.
    """
    listed = {layer: np.asarray(values, np.float64) for layer, values in scores.items()}
    # Below whatever a unit that is still there may have, also after a division by costs.
    gone = -1e15 * (1 + sum(float(np.abs(values).sum()) for values in listed.values()))
    graph = trace_channels(model, before.residual)
    # Of one group, it is a convolution that owns its filters in the slim model.
    one_group = {call.path for call in graph.calls.values() if is_depthwise(call.layer)}
    everything = {}
    for layer, values in listed.items():
        if layer not in before.filters:
            if layer not in one_group:
                everything[layer] = values  # not one of the plan: `plan_pruning` says why
            continue
        kept = before.kept[layer]
        if values.shape != kept.shape:
            raise ValueError(
                f"scores of layer {layer!r} must have shape {kept.shape}, one per filter that is "
                f"kept. Received: {values.shape}"
            )
        everything[layer] = np.full(before.filters[layer], gone)
        everything[layer][kept] = values
    plan = plan_pruning(model, everything, residual=before.residual, **options)
    flags, earlier = plan.flags(), before.flags()
    left = {layer: flags[layer] & earlier[layer] for layer in flags}
    whole = plan_from_flags(graph, left)
    return dataclasses.replace(whole, shortfall=plan.shortfall)


def plan_on_slim(slim: tf_keras.Model, before: PruningPlan, after: PruningPlan) -> PruningPlan:
    """The plan that makes of `prune(model, before)` what keeps the filters of `after`.

    Args:
        slim: a model of the architecture of `prune(model, before)`.
        before: a plan of the model that everything started from.
        after: another, which keeps nothing that `before` removes.
    """
    graph = trace_channels(slim, after.residual)
    flags = {layer: np.isin(before.kept[layer], after.kept[layer]) for layer in after.filters}
    # A grouped convolution that was cut to one group owns filters here: that group stays.
    alone = {layer: np.ones(len(ids), np.bool_) for layer, ids in graph.ids.atoms.items()}
    return plan_from_flags(graph, alone | flags)
