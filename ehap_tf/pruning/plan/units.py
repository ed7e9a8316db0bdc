"""The filters of a model as units that live or die together, ranked in one list."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ehap_tf.channels import ChannelGraph, Flags, Ids, weight_axes

Floats = npt.NDArray[np.float64]
COST_KINDS = ("macs", "params")
TOGETHER = "they live or die together, and one filter of a layer has to stay"
MUCH = 0.75
"""A plan that removes less than this share of what was asked says so."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """For each unit whether it stays, and whether it stays as 1x1 filters only."""

    stays: Flags
    implanted: Flags


def stays_because(number: int, filters: int, reason: str) -> str:
    """Says why a number of a layer's filters stay."""
    return reason if number == filters else f"{number} of {filters} filters stay: {reason}"


class Units:
    """The units of a traced model and what a layer must keep.

    Args:
        graph: the trace of the model.
        scores: layer path -> one score per filter.
        prune_ratio_limit: largest share of its filters that a layer may lose.
        round_to: the number of filters that a pruned layer keeps is a multiple of this.
        keep_layers: paths or patterns of layers that keep all their filters.
        implant_ratio: share of the removed units, the most worthy ones, that become 1x1.
        cost_aware: "macs" or "params": scores are divided by what removing the unit saves.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Mapping[str, npt.ArrayLike],
        *,
        prune_ratio_limit: float,
        round_to: int,
        keep_layers: Sequence[str],
        implant_ratio: float,
        cost_aware: str | None,
    ) -> None:
        self._graph = graph
        self._round_to = round_to
        self._limit = prune_ratio_limit
        self._implant_ratio = implant_ratio
        self._layers = list(graph.ids.atoms)
        listed = _checked_scores(graph, scores)
        atoms = np.concatenate([graph.ids.atoms[layer] for layer in self._layers])
        roots, self._unit = np.unique(graph.ids.groups(atoms), return_inverse=True)
        widths = [len(graph.ids.atoms[name]) for name in self._layers]
        self._layer = np.repeat(np.arange(len(widths)), widths)
        missing = [np.full(width, np.nan) for width in widths]
        scored = np.concatenate(
            [listed.get(*pair) for pair in zip(self._layers, missing, strict=True)]
        )
        count = len(roots)
        self._scored = ~np.isnan(scored)
        # A filter without a score takes no part in the sum of its unit ...
        unit_scores = np.bincount(self._unit, np.nan_to_num(scored), count).astype(np.float64)
        # ... and a unit in which nothing has a score stays as it is.
        listed_filters = np.bincount(self._unit, self._scored, count)
        frozen = np.array([graph.ids.frozen_reason(root) is not None for root in roots.tolist()])
        self._by_name = by_name = np.bincount(self._unit, self._named(keep_layers), count) > 0
        if cost_aware:
            savings = np.bincount(self._unit, _savings(graph, cost_aware)[atoms], count)
            unit_scores = unit_scores / np.maximum(savings, 1)
        self.scores: Floats = unit_scores
        self.free: Flags = (listed_filters > 0) & ~frozen & ~by_name
        # Units of equal scores go by their places in their layers, so that no layer loses all of
        # its own first.
        places = np.concatenate([np.arange(width) / width for width in widths])
        place = np.bincount(self._unit, places, count) / np.bincount(self._unit, minlength=count)
        self._ranked = np.lexsort((place, self.scores))
        self._listed = np.cumsum(listed_filters[self._ranked])
        can = np.array([name in graph.implantable for name in self._layers])
        self._implantable: Flags = np.bincount(self._unit, can[self._layer], count) > 0
        self._order = self._ranked[self.free[self._ranked]]

    def above_threshold(self, prune_ratio: float) -> Choice:
        """Removes what is not above the threshold of the global list, or makes it 1x1."""
        stays = np.ones(len(self.scores), np.bool_)
        band = ~stays
        if prune_ratio == 0:
            return Choice(stays, band)
        number = self._up_to(prune_ratio)
        first = self._up_to((1 - self._implant_ratio) * prune_ratio)
        stays[self._ranked[:number]] = False
        band[self._ranked[first:number]] = True
        return self._within_limits(stays, band)

    def without_lowest(self, number: int) -> Choice:
        """Removes the `number` units of the lowest scores, or makes the best of them 1x1."""
        stays = np.ones(len(self.scores), np.bool_)
        band = ~stays
        stays[self._order[:number]] = False
        first = number - int(self._implant_ratio * number)
        band[self._order[first:number]] = True
        return self._within_limits(stays, band)

    def fewest(self, reached: Callable[[Choice], bool]) -> Choice | None:
        """The choice that removes as few of the lowest units as will do, or None if none does.

        Args:
            reached: whether a choice will do; one that removes more has to do as well.
        """
        low, high = 0, int(self.free.sum())
        if not reached(self.without_lowest(high)):
            return None
        while low < high:
            middle = (low + high) // 2
            if reached(self.without_lowest(middle)):
                high = middle
            else:
                low = middle + 1
        return self.without_lowest(low)

    def flags(self, choice: Choice) -> tuple[dict[str, Flags], dict[str, Flags]]:
        """Layer -> which channels stay; layer -> which of them become 1x1."""
        stays, small = choice.stays[self._unit], choice.implanted[self._unit]
        alive, implanted = {}, {}
        for number, name in enumerate(self._layers):
            mine = self._layer == number
            alive[name] = stays[mine]
            implanted[name] = small[mine] & (name in self._graph.implantable)
        return alive, implanted

    def held(self) -> dict[str, str]:
        """The layers with filters that stay whatever their scores are, and why."""
        frozen = self._graph.frozen_filters()
        held = {}
        for number, name in enumerate(self._layers):
            units = self._unit[self._layer == number]
            stays = ~self.free[units]
            if not stays.any():
                if len(set(units.tolist())) == 1:
                    held[name] = TOGETHER if len(units) > 1 else "it is the only one"
                continue
            if name in frozen:
                reason = frozen[name][1]
            elif self._by_name[units].any():
                reason = "keep_layers names it or a layer that it lives with"
            else:
                reason = "it has no scores"
            held[name] = stays_because(int(stays.sum()), len(stays), reason)
        return held

    def shortfall(self, prune_ratio: float, choice: Choice) -> str:
        """Why much less is removed than stands below the threshold of `above_threshold`, or ""."""
        number = self._up_to(prune_ratio) if prune_ratio else 0
        below = np.zeros(len(self.scores), np.bool_)
        below[self._ranked[:number]] = True
        asked = self._sizes(below)
        removed = self._sizes(below & (~choice.stays | choice.implanted))
        if removed >= MUCH * asked:
            return ""
        held, reasons = self.held(), []
        for place, name in enumerate(self._layers):
            mine = self._unit[(self._layer == place) & self._scored]
            if staying := int((below & ~self.free)[mine].sum()):
                reasons.append(f"{staying} of {name} ({held[name]})")
        if limited := self._sizes(below & self.free & choice.stays & ~choice.implanted):
            reasons.append(f"{limited} by prune_ratio_limit={self._limit:g} and round_to")
        return (
            f"prune_ratio={prune_ratio:g} puts {asked} of {int(self._listed[-1])} filters below "
            f"the threshold, and {removed} of them are removed. These stay: {'; '.join(reasons)}"
        )

    def _sizes(self, units: Flags) -> int:
        """How many filters with scores some units have."""
        return int(units[self._unit[self._scored]].sum())

    def _up_to(self, share: float) -> int:
        """How many units stand in the global list up to the filter at a share of its length."""
        place = int(share * self._listed[-1])
        return int(np.searchsorted(self._listed, place, side="right")) + 1

    def _within_limits(self, stays: Flags, band: Flags) -> Choice:
        """Brings back the best removed units of every layer that would lose too many filters."""
        full = stays | ~self.free
        small = band & self._implantable & ~full
        stays = full | small
        best_first = self._ranked[::-1]
        changed = True
        while changed:
            changed = False
            for number in range(len(self._layers)):
                members = self._unit[self._layer == number]
                kept = int(stays[members].sum())
                needed = self._needed(kept, len(members))
                if kept >= needed:
                    continue
                changed = True
                sizes = np.bincount(members, minlength=len(stays))
                removed = best_first[~stays[best_first] & (sizes[best_first] > 0)]
                enough = np.searchsorted(np.cumsum(sizes[removed]), needed - kept) + 1
                stays[removed[:enough]] = True
        return Choice(stays, small)

    def _needed(self, kept: int, total: int) -> int:
        """How many filters a layer has to keep when its scores would keep `kept`."""
        least = max(1, total - int(self._limit * total + 1e-9))
        kept = max(kept, least)
        return min(total, -(-kept // self._round_to) * self._round_to)

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


def _savings(graph: ChannelGraph, kind: str) -> Floats:
    """For each id what its removal alone saves in the full model, in MACs or parameters."""
    alive = np.ones(len(graph.ids), np.bool_)
    savings = np.zeros(len(graph.ids))
    parts: list[tuple[float, Iterable[Ids | None]]] = []
    if kind == "macs":
        for call in graph.calls.values():
            parts += [(call.times * term.count(alive), term.axes) for term in call.macs]
    else:
        axes_of = {
            key: at for call in graph.calls.values() for key, at in weight_axes(call).items()
        }
        weights = {id(w): w for call in graph.calls.values() for w in call.layer.weights}
        parts += [(math.prod(weights[key].shape), axes) for key, axes in axes_of.items()]
    for whole, axes in parts:
        if np.isnan(whole):
            raise ValueError(
                "cost_aware='macs' needs a model whose input has a fixed size; give 'params'"
            )
        for ids in axes:
            if ids is not None:
                np.add.at(savings, ids, whole / max(len(ids), 1))
    return savings


def _checked_scores(graph: ChannelGraph, scores: Mapping[str, npt.ArrayLike]) -> dict[str, Floats]:
    listed = {}
    for layer, values in scores.items():
        array = np.asarray(values, np.float64)
        atoms = graph.ids.atoms.get(layer)
        if atoms is None and layer in graph.notes:
            continue  # it stays, for the reason in the plan
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
        raise ValueError(
            "scores must hold at least one layer whose filters can be removed. Received: "
            f"{list(scores) or 'none'}"
        )
    return listed
