"""Which filters stay: one global threshold, the limits of every layer, and targets."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tf_keras

from ehap_tf.channels import ChannelGraph, Flags, trace_channels
from ehap_tf.pruning.plan import PruningPlan

Floats = npt.NDArray[np.float64]


def plan_pruning(
    model: tf_keras.Model,
    scores: Mapping[str, npt.ArrayLike],
    prune_ratio: float | None = None,
    *,
    target_params: float | None = None,
    target_macs: float | None = None,
    prune_ratio_limit: float = 0.95,
    residual: str = "union",
    implant_ratio: float = 0.0,
    round_to: int = 1,
    keep_layers: Sequence[str] = (),
) -> PruningPlan:
    """Chooses the filters that stay, without building a model.

    All filters of all scored layers stand in one list. With `prune_ratio`, the threshold is
    `sorted(scores)[int(prune_ratio * N)]` and a filter stays if its score is above it (HAP and
    EHAP); a ratio of 0 removes nothing. Filters that live or die together share the sum of their
    scores. With a target, the threshold is searched.

    Args:
        model: a Functional or Sequential model.
        scores: layer path -> one score a filter; higher is worth more.
        prune_ratio: share of all filters below the threshold, in [0, 1).
        target_params: fraction of the parameters to keep, in (0, 1].
        target_macs: fraction of the multiply-accumulates to keep, in (0, 1].
        prune_ratio_limit: largest share of its filters that a layer may lose, in [0, 1]; the last
            filter always stays.
        residual: "union": every branch of a sum keeps its own filters. "tied": the branches keep
            the same.
        implant_ratio: share of the removed filters that are replaced by 1x1 filters.
        round_to: the number of filters that a pruned layer keeps is a multiple of this.
        keep_layers: paths or patterns (`block3_*`) of layers that keep all their filters.

    Returns:
        A plan, with the parameters and multiply-accumulates that the slim model will have.

    Raises:
        TypeError: the model is subclassed.
        ValueError: an argument is out of range, scores do not fit the model, or a target cannot be
            reached.
    """
    _check_arguments(prune_ratio, target_params, target_macs, prune_ratio_limit, round_to)
    if implant_ratio:
        raise ValueError(
            f"implant_ratio must be 0: implants are not built yet. Received: {implant_ratio}"
        )
    graph = trace_channels(model, residual)
    chooser = _Chooser(graph, scores, prune_ratio_limit, round_to, keep_layers)
    if prune_ratio is not None:
        flags = chooser.at_ratio(prune_ratio)
    elif target_params is not None:
        flags = chooser.at_target("parameters", target_params)
    else:
        assert target_macs is not None
        flags = chooser.at_target("MACs", target_macs)
    return _make_plan(graph, flags)


def _make_plan(graph: ChannelGraph, flags: dict[str, Flags]) -> PruningPlan:
    before = np.ones(len(graph.ids), np.bool_)
    after = graph.ids.alive(flags)
    return PruningPlan(
        kept={layer: np.flatnonzero(stays) for layer, stays in flags.items()},
        implanted={},
        filters={layer: len(stays) for layer, stays in flags.items()},
        residual=graph.residual,
        params_before=graph.count_parameters(before),
        params_after=graph.count_parameters(after),
        macs_before=graph.count_macs(before),
        macs_after=graph.count_macs(after),
        frozen=dict(graph.notes),
    )


class _Chooser:
    """The filters of a model as units that live or die together, with their scores."""

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Mapping[str, npt.ArrayLike],
        prune_ratio_limit: float,
        round_to: int,
        keep_layers: Sequence[str],
    ) -> None:
        self._graph = graph
        self._round_to = round_to
        self._limit = prune_ratio_limit
        self._layers = list(graph.ids.atoms)
        listed = _checked_scores(graph, scores)
        atoms = np.concatenate([graph.ids.atoms[layer] for layer in self._layers])
        roots, self._unit = np.unique(graph.ids.groups(atoms), return_inverse=True)
        self._layer = np.concatenate(
            [np.full(len(graph.ids.atoms[name]), i) for i, name in enumerate(self._layers)]
        )
        scored = np.concatenate(
            [listed.get(name, np.full(len(graph.ids.atoms[name]), np.nan)) for name in self._layers]
        )
        # A filter without a score takes no part in the sum of its unit ...
        unit_scores = np.bincount(self._unit, np.nan_to_num(scored), len(roots)).astype(np.float64)
        # ... and a unit in which nothing has a score stays as it is.
        has_score = np.bincount(self._unit, ~np.isnan(scored), len(roots)) > 0
        frozen = np.array([graph.ids.frozen_reason(root) is not None for root in roots.tolist()])
        kept_by_name = np.bincount(self._unit, self._named(keep_layers), len(roots)) > 0
        self._scores: Floats = unit_scores
        self._free = has_score & ~frozen & ~kept_by_name
        self._listed = self._scores[self._unit][~np.isnan(scored)]

    def at_ratio(self, prune_ratio: float) -> dict[str, Flags]:
        """Removes what is not above the threshold of the global list."""
        if prune_ratio == 0:
            return self._flags(np.ones(len(self._scores), np.bool_))
        threshold = np.sort(self._listed)[int(prune_ratio * len(self._listed))]
        return self._flags(self._within_limits(self._scores > threshold))

    def at_target(self, what: str, fraction: float) -> dict[str, Flags]:
        """Removes as few of the lowest units as bring the count down to a fraction of all."""
        order = np.argsort(np.where(self._free, self._scores, np.inf), kind="stable")
        free = int(self._free.sum())

        def removing(number: int) -> dict[str, Flags]:
            stays = np.ones(len(self._scores), np.bool_)
            stays[order[:number]] = False
            return self._flags(self._within_limits(stays))

        goal = fraction * self._count(what, removing(0))
        most = removing(free)
        if self._count(what, most) > goal:
            reachable = self._count(what, most) / self._count(what, removing(0))
            raise ValueError(
                f"a target of {fraction:.4g} of the {what} cannot be reached: with "
                f"prune_ratio_limit={self._limit:g} and the frozen layers ({self._held()}) at "
                f"least {reachable:.4g} is left"
            )
        low, high = 0, free
        while low < high:
            middle = (low + high) // 2
            if self._count(what, removing(middle)) <= goal:
                high = middle
            else:
                low = middle + 1
        return removing(low)

    def _count(self, what: str, flags: dict[str, Flags]) -> float:
        alive = self._graph.ids.alive(flags)
        if what == "parameters":
            return self._graph.count_parameters(alive)
        macs = self._graph.count_macs(alive)
        if np.isnan(macs):
            raise ValueError(
                "target_macs needs a model whose input has a fixed size; give target_params"
            )
        return macs

    def _within_limits(self, stays: Flags) -> Flags:
        """Brings back the best removed units of every layer that would lose too many filters."""
        stays = stays | ~self._free
        best_first = np.argsort(-self._scores, kind="stable")
        changed = True
        while changed:
            changed = False
            for number in range(len(self._layers)):
                mine = self._layer == number
                total = int(mine.sum())
                kept = int(stays[self._unit[mine]].sum())
                needed = self._needed(kept, total)
                if kept >= needed:
                    continue
                changed = True
                sizes = np.bincount(self._unit[mine], minlength=len(stays))
                for unit in best_first:
                    if kept >= needed:
                        break
                    if not stays[unit] and sizes[unit]:
                        stays[unit] = True
                        kept += int(sizes[unit])
        return stays

    def _needed(self, kept: int, total: int) -> int:
        """How many filters a layer has to keep when its scores would keep `kept`."""
        least = max(1, total - int(self._limit * total + 1e-9))
        kept = max(kept, least)
        return min(total, -(-kept // self._round_to) * self._round_to)

    def _flags(self, stays: Flags) -> dict[str, Flags]:
        of_filter = stays[self._unit]
        return {name: of_filter[self._layer == number] for number, name in enumerate(self._layers)}

    def _named(self, patterns: Sequence[str]) -> Flags:
        keep = np.zeros(len(self._layers), np.bool_)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = [fnmatch.fnmatchcase(name, pattern) for name in self._layers]
            if not any(matches):
                raise ValueError(
                    f"keep_layers: no layer with filters matches {pattern!r}. The layers are: "
                    f"{', '.join(self._layers)}"
                )
            keep |= np.array(matches)
        return keep[self._layer]

    def _held(self) -> str:
        held = [
            name
            for number, name in enumerate(self._layers)
            if not self._free[self._unit[self._layer == number]].any()
        ]
        return (
            ", ".join(held) if len(held) <= 5 else f"{', '.join(held[:5])} and {len(held) - 5} more"
        )


def _checked_scores(graph: ChannelGraph, scores: Mapping[str, npt.ArrayLike]) -> dict[str, Floats]:
    listed = {}
    for layer, values in scores.items():
        array = np.asarray(values, np.float64)
        atoms = graph.ids.atoms.get(layer)
        if atoms is None:
            raise ValueError(
                f"scores name the layer {layer!r}, which the model does not have or which has no "
                f"filters. The layers are: {', '.join(graph.ids.atoms)}"
            )
        if array.shape != (len(atoms),):
            raise ValueError(
                f"scores of layer {layer!r} must have shape ({len(atoms)},). "
                f"Received: {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"scores of layer {layer!r} must be finite. Received: {array}")
        listed[layer] = array
    if not listed:
        raise ValueError("scores must hold at least one layer. Received: none")
    return listed


def _check_arguments(
    prune_ratio: float | None,
    target_params: float | None,
    target_macs: float | None,
    prune_ratio_limit: float,
    round_to: int,
) -> None:
    given = {
        "prune_ratio": prune_ratio,
        "target_params": target_params,
        "target_macs": target_macs,
    }
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ValueError(
            f"give exactly one of prune_ratio, target_params and target_macs. Received: {named}"
        )
    if prune_ratio is not None and not 0 <= prune_ratio < 1:
        raise ValueError(f"prune_ratio must be in [0, 1). Received: {prune_ratio}")
    for name in ("target_params", "target_macs"):
        value = given[name]
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], a fraction to keep. Received: {value}")
    if not 0 <= prune_ratio_limit <= 1:
        raise ValueError(f"prune_ratio_limit must be in [0, 1]. Received: {prune_ratio_limit}")
    if not (isinstance(round_to, int) and round_to >= 1):
        raise ValueError(f"round_to must be a whole number of at least 1. Received: {round_to}")
