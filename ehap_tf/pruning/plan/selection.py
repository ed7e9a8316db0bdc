"""Which filters stay: one global threshold, or the threshold that meets a target."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from ehap_tf.budget import LatencyTable
from ehap_tf.channels import ChannelGraph, Flags, trace_channels
from ehap_tf.models.keras3 import either_keras
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.pruning.plan.implant_layers import IMPLANT_INITS
from ehap_tf.pruning.plan.predicted_latency import PredictedLatency
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.plan.units import COST_KINDS, Choice, Units, stays_because


@either_keras()
def plan_pruning(
    model: tf_keras.Model,
    scores: Mapping[str, npt.ArrayLike],
    prune_ratio: float | None = None,
    *,
    target_params: float | None = None,
    target_macs: float | None = None,
    target_latency_ms: float | None = None,
    costs: LatencyTable | None = None,
    prune_ratio_limit: float = 0.95,
    residual: str = "union",
    implant_ratio: float = 0.0,
    implant_init: str = "zero",
    round_to: int = 1,
    keep_layers: Sequence[str] = (),
    cost_aware: str | None = None,
    progress: ProgressCallback = no_progress,
) -> PruningPlan:
    """Chooses the filters that stay, without building a model.

    All filters of all scored layers stand in one list. With `prune_ratio`, the threshold is
    `sorted(scores)[int(prune_ratio * N)]` and a filter stays if its score is above it (HAP and
    EHAP); a ratio of 0 removes nothing. Of filters whose score is the threshold itself as many go
    as bring the number of those below it to `int(prune_ratio * N) + 1`, alike from all layers.
    Filters that live or die together share the sum of their scores. Filters that cannot be removed
    stand in the list, too: a plan that removes much less than the ratio says so in a warning and in
    `plan.shortfall`. With a target, the threshold is searched.

    Args:
        model: a Functional or Sequential model.
        scores: layer path -> one score per filter; higher is worth more. For tied pruning,
            rank with `residual="tied"` where the criterion has a gate.
        prune_ratio: share of all filters below the threshold, in [0, 1).
        target_params: fraction of the parameters to keep, in (0, 1].
        target_macs: fraction of the multiply-accumulates to keep, in (0, 1].
        target_latency_ms: milliseconds that the integer file may take, as `costs` predicts them of
            the file itself: a dozen files are written while the threshold is searched. Give
            `round_to=8` with it, and `cost_aware="macs"`.
        costs: from `measure_operators` of this model, on any device; None measures this machine.
        prune_ratio_limit: largest share of its filters that a layer may lose, in [0, 1]; the last
            filter always stays.
        residual: "union": every branch of a sum keeps its own filters. "tied": the branches keep
            the same.
        implant_ratio: of the filters below the threshold, the share of highest scores that stays
            as 1x1 filters, in [0, 1]. A 1x1 layer has nothing to gain; there they are removed.
        implant_init: what the 1x1 kernels start from: "zero", or "center" of the old kernel.
        round_to: the number of filters that a pruned layer keeps is a multiple of this.
        keep_layers: paths or patterns (`block3_*`) of layers that keep all their filters.
        cost_aware: "macs" or "params": a score counts per cost that its filter causes.
        progress: with a target latency, called as `progress(files, of_about, figures)`; the figure
            is the "latency_ms" of the last.

    Returns:
        A plan, with the parameters and multiply-accumulates that the slim model will have.

    Raises:
        TypeError: the model is subclassed, or `scores` is no mapping.
        ValueError: an argument is out of range, scores do not fit the model, or a target cannot be
            reached.

    Example:
        >>> table = ehap.LatencyTable.from_json(open("raspberry_pi.json").read())
        >>> plan = ehap.plan_pruning(model, scores, target_latency_ms=4.0, costs=table, round_to=8)
    """
    _check_scores(scores, residual)
    amount = {
        "prune_ratio": prune_ratio,
        "target_params": target_params,
        "target_macs": target_macs,
        "target_latency_ms": target_latency_ms,
    }
    _check_amount(amount)
    if costs is not None and target_latency_ms is None:
        raise ValueError("costs go with target_latency_ms. Received: target_latency_ms=None")
    _check_limits(prune_ratio_limit, implant_ratio, implant_init, cost_aware, round_to)
    graph = trace_channels(model, residual)
    units = Units(
        graph,
        scores,
        prune_ratio_limit=prune_ratio_limit,
        round_to=round_to,
        keep_layers=keep_layers,
        implant_ratio=implant_ratio,
        cost_aware=cost_aware,
    )

    def finished(choice: Choice) -> PruningPlan:
        return plan_from_flags(graph, *units.flags(choice), implant_init, units.held())

    shortfall = ""
    if prune_ratio is not None:
        choice = units.above_threshold(prune_ratio)
        shortfall = units.shortfall(prune_ratio, choice)
    elif target_latency_ms is not None:
        latency = PredictedLatency(model, costs, progress, int(units.free.sum()).bit_length() + 1)
        choice = _in_time(units, latency, finished, target_latency_ms, prune_ratio_limit, round_to)
    else:
        kind = "params" if target_params is not None else "macs"
        fraction = target_params if target_params is not None else target_macs
        assert fraction is not None
        choice = _search(graph, units, kind, fraction, prune_ratio_limit, round_to)
    if shortfall:
        warnings.warn(
            f"{shortfall}. To remove more, give target_params or target_macs, which count what is "
            "removed, or leave the scores of these layers out, so that the ratio is of the others",
            stacklevel=3,
        )
    return dataclasses.replace(finished(choice), shortfall=shortfall)


def _check_limits(
    prune_ratio_limit: float,
    implant_ratio: float,
    implant_init: str,
    cost_aware: str | None,
    round_to: int,
) -> None:
    check_fraction("prune_ratio_limit", prune_ratio_limit)
    check_fraction("implant_ratio", implant_ratio)
    check_choice("implant_init", implant_init, IMPLANT_INITS)
    if cost_aware is not None:
        check_choice("cost_aware", cost_aware, COST_KINDS)
    check_whole_number("round_to", round_to)


def _in_time(
    units: Units,
    latency: PredictedLatency,
    finished: Callable[[Choice], PruningPlan],
    target_ms: float,
    prune_ratio_limit: float,
    round_to: int,
) -> Choice:
    return _least_removed(
        units,
        lambda choice: latency.of(finished(choice)),
        target_ms,
        lambda least: (
            f"target_latency_ms={target_ms:g} cannot be reached: on "
            f"{latency.device} at least {least:.4g} ms of {latency.whole_ms:.4g} ms are left"
        ),
        prune_ratio_limit,
        round_to,
    )


def plan_from_flags(
    graph: ChannelGraph,
    alive: Mapping[str, Flags],
    implanted: Mapping[str, Flags] | None = None,
    implant_init: str = "zero",
    held: Mapping[str, str] | None = None,
) -> PruningPlan:
    """The plan that keeps the filters with a flag.

    Args:
        graph: the trace of the model.
        alive: layer path -> for each filter whether its channel stays.
        implanted: layer path -> for each filter whether it becomes 1x1.
        implant_init: as in `plan_pruning`.
        held: layer path -> why filters of it stay; what the graph says when not given.
    """
    if held is None:
        held = {
            layer: stays_because(number, len(graph.ids.atoms[layer]), reason)
            for layer, (number, reason) in graph.frozen_filters().items()
        }
    small = {layer: flags for layer, flags in (implanted or {}).items() if flags.any()}
    nothing: Flags = np.zeros(1, np.bool_)
    before = graph.costs(np.ones(len(graph.ids), np.bool_))
    after = _costs(graph, alive, small)
    return PruningPlan(
        kept={
            layer: np.flatnonzero(flags & ~small.get(layer, nothing))
            for layer, flags in alive.items()
        },
        implanted={layer: np.flatnonzero(flags) for layer, flags in small.items()},
        filters={layer: len(flags) for layer, flags in alive.items()},
        residual=graph.residual,
        params_before=int(_total(before, "params")),
        params_after=int(_total(after, "params")),
        macs_before=_total(before, "macs"),
        macs_after=_total(after, "macs"),
        costs={
            layer: (params, after[layer][0], macs, after[layer][1])
            for layer, (params, macs) in before.items()
            if params or macs
        },
        frozen={**graph.notes, **held},
        implant_init=implant_init,
        uncounted=graph.uncounted(),
    )


def cost_of(
    graph: ChannelGraph,
    kind: str,
    alive: Mapping[str, Flags],
    implanted: Mapping[str, Flags] | None = None,
) -> float:
    """Parameters or multiply-accumulates ("params", "macs") of the model with some filters."""
    return _total(_costs(graph, alive, implanted or {}), kind)


def _costs(
    graph: ChannelGraph, alive: Mapping[str, Flags], implanted: Mapping[str, Flags]
) -> dict[str, tuple[int, float]]:
    small = {layer: int(those.sum()) for layer, those in implanted.items()}
    return graph.costs(graph.ids.alive(dict(alive)), small)


def _total(costs: Mapping[str, tuple[int, float]], kind: str) -> float:
    total = sum(params if kind == "params" else macs for params, macs in costs.values())
    return total if np.isnan(total) else round(total)


def _search(
    graph: ChannelGraph, units: Units, kind: str, fraction: float, limit: float, round_to: int
) -> Choice:
    """Removes as few of the lowest units as bring the cost down to a fraction of the whole."""

    def cost(choice: Choice) -> float:
        return cost_of(graph, kind, *units.flags(choice))

    whole = cost(units.without_lowest(0))
    if kind == "macs" and (uncounted := graph.uncounted()):
        warnings.warn(
            f"target_macs={fraction:g} is met in what can be counted. Not counted: "
            + "; ".join(f"{layer}: {why}" for layer, why in uncounted.items()),
            stacklevel=4,
        )
    if np.isnan(whole):
        raise ValueError(
            "target_macs needs a model whose input has a fixed size; give target_params"
        )
    return _least_removed(
        units,
        cost,
        fraction * whole,
        lambda least: (
            f"target_{kind}={fraction:g} cannot be reached: at least {least / whole:.4g} is left"
        ),
        limit,
        round_to,
    )


def _least_removed(
    units: Units,
    cost: Callable[[Choice], float],
    budget: float,
    refusal: Callable[[float], str],
    limit: float,
    round_to: int,
) -> Choice:
    """The choice that removes as few of the lowest units as bring a cost down to the budget.

    Raises:
        ValueError: none does; `refusal` says of the least possible cost how far it goes.
    """
    found = units.fewest(lambda choice: cost(choice) <= budget)
    if found is None:
        least = cost(units.without_lowest(int(units.free.sum())))
        held = [f"{layer} ({reason})" for layer, reason in units.held().items()]
        names = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
        raise ValueError(
            f"{refusal(least)} with prune_ratio_limit={limit:g} and round_to={round_to}. Filters "
            f"stay in: {names or 'no layer'}"
        )
    return found


def _check_scores(scores: Any, residual: str) -> None:
    if not isinstance(scores, Mapping):
        raise TypeError(
            "scores must be a mapping from layer to one score per filter, as rank_filters(model, "
            f"data) returns it. Received: {type(scores).__name__}"
        )
    scored_for = getattr(getattr(scores, "provenance", None), "residual", "union")
    if scored_for == "tied" and residual != "tied":
        raise ValueError(
            "residual must be 'tied' for scores that were ranked with residual='tied': they are "
            f"shares of what goes together. Received: {residual!r}; rank again, or plan 'tied'"
        )


def _check_amount(amount: Mapping[str, float | None]) -> None:
    given = {name: value for name, value in amount.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            "give exactly one of prune_ratio, target_params, target_macs and target_latency_ms. "
            f"Received: {given}"
        )
    ((name, value),) = given.items()
    if name == "prune_ratio" and not 0 <= value < 1:
        raise ValueError(f"prune_ratio must be in [0, 1). Received: {value}")
    if name == "target_latency_ms" and not value > 0:
        raise ValueError(f"target_latency_ms must be above 0. Received: {value}")
    if name in ("target_params", "target_macs") and not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], a fraction to keep. Received: {value}")


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError where an argument is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1]. Received: {value}")


def check_whole_number(name: str, value: int) -> None:
    """Raises ValueError where an argument is not 1, 2, 3 and so on."""
    if not (isinstance(value, numbers.Integral) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1. Received: {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError where an argument is none of the choices; lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}. Received: {value!r}")
