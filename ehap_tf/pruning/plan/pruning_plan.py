"""What to keep: a value that can be looked at, saved, compared and applied."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ehap_tf.channels import ChannelGraph, Flags
from ehap_tf.files import json_fields

_FORMAT = "ehap_tf.PruningPlan/1"


@dataclasses.dataclass(frozen=True, eq=False)
class PruningPlan:
    """Per layer, which filters stay.

    Plans are equal where all that they hold is, in whatever order the layers are given. They cannot
    be hashed.

    Attributes:
        kept: layer path -> sorted indices of the filters that stay as they are.
        implanted: layer path -> sorted indices of the filters whose kernel shrinks to 1x1.
        implant_init: what a 1x1 kernel starts from: "zero", or "center", the k x k kernel's centre.
        filters: layer path -> number of filters of the original layer.
        residual: "union" or "tied": what sums do to the channels that they line up.
        params_before, params_after: numbers in all weights of the model.
        macs_before, macs_after: multiply-accumulates of one example; NaN where the input size is
            not fixed.
        costs: layer path -> parameters before and after, multiply-accumulates before and after.
        uncounted: layer path -> why it has multiply-accumulates that are not in these numbers.
        shortfall: why much less is removed than `prune_ratio` asked for, with the figures, or "".
        frozen: layer path -> why channels around it cannot be removed; for a layer with filters
            why they, or some of them, stay whatever their scores.
    """

    kept: Mapping[str, npt.NDArray[np.int64]]
    implanted: Mapping[str, npt.NDArray[np.int64]]
    filters: Mapping[str, int]
    residual: str
    params_before: int
    params_after: int
    macs_before: float
    macs_after: float
    costs: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    implant_init: str = "zero"
    uncounted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shortfall: str = ""

    def __repr__(self) -> str:
        kept, small, _ = self._counts(list(self.filters))
        total = sum(self.filters.values())
        stays = f"{kept} of {total} filters stay" + (f", {small} as 1x1" if int(small) else "")
        return (
            f"PruningPlan({len(self.filters)} layers, {stays}; parameters "
            f"{self.params_before:,} -> {self.params_after:,}, MACs {self.macs_before:,.0f} -> "
            f"{self.macs_after:,.0f})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningPlan):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(_equal(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> str:
        """The plan as text that `from_json` reads back."""
        fields = {
            "format": _FORMAT,
            "residual": self.residual,
            "params_before": self.params_before,
            "params_after": self.params_after,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "implant_init": self.implant_init,
            "filters": dict(self.filters),
            "kept": {layer: kept.tolist() for layer, kept in self.kept.items()},
            "implanted": {layer: those.tolist() for layer, those in self.implanted.items()},
            "costs": {layer: list(numbers) for layer, numbers in self.costs.items()},
            "frozen": dict(self.frozen),
            "uncounted": dict(self.uncounted),
            "shortfall": self.shortfall,
        }
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is not a plan, or an index is out of range.
        """
        fields = json_fields(text, _FORMAT, "pruning plan")
        try:
            kept = _index_arrays(fields.pop("kept"))
            implanted = _index_arrays(fields.pop("implanted"))
            plan = cls(kept=kept, implanted=implanted, **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a pruning plan: {error}") from None
        plan._check_indices()
        return plan

    def summary(self) -> str:
        """A table for people.

        A line for each layer with filters or parameters, with the reason why filters stay whatever
        they are worth; then the sums, then the layers that the other reasons come from, and those
        whose multiply-accumulates are not counted.
        """
        rows = [("layer", "kept", "1x1", "removed", "parameters", "MACs", "why filters stay")]
        for layer in [*self.costs, *(layer for layer in self.filters if layer not in self.costs)]:
            params, params_after, macs, macs_after = self.costs.get(layer, (0, 0, 0, 0))
            counts = self._counts([layer]) if layer in self.filters else ("", "", "")
            rows.append(
                (
                    layer,
                    *counts,
                    f"{params:,.0f} -> {params_after:,.0f}",
                    f"{macs:,.0f} -> {macs_after:,.0f}" if macs else "",
                    self.frozen.get(layer, "") if layer in self.filters else "",
                )
            )
        rows.append(
            (
                "model",
                *self._counts(list(self.filters)),
                f"{self.params_before:,} -> {self.params_after:,}",
                f"{self.macs_before:,.0f} -> {self.macs_after:,.0f}",
                "",
            )
        )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for first, *numbers, reason in rows:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
            lines.append("  ".join((first.ljust(widths[0]), *cells, reason)).rstrip())
        lines += [
            f"frozen: {layer}: {reason}"
            for layer, reason in self.frozen.items()
            if layer not in self.filters
        ]
        if self.shortfall:
            lines.append(self.shortfall)
        lines += [f"MACs not counted: {layer}: {why}" for layer, why in self.uncounted.items()]
        return "\n".join(lines)

    def _counts(self, layers: Sequence[str]) -> tuple[str, str, str]:
        """Filters of some layers: kept, 1x1, removed."""
        kept = sum(len(self.kept[layer]) for layer in layers)
        small = sum(len(self.implanted.get(layer, ())) for layer in layers)
        total = sum(self.filters[layer] for layer in layers)
        return str(kept), str(small), str(total - kept - small)

    def flags(self) -> dict[str, Flags]:
        """Layer path -> for each filter whether its channel stays, implanted ones included."""
        flags = {}
        for layer, count in self.filters.items():
            stays = np.zeros(count, np.bool_)
            stays[self.kept[layer]] = True
            stays[self.implanted.get(layer, [])] = True
            flags[layer] = stays
        return flags

    def alive(self, graph: ChannelGraph) -> Flags:
        """For each channel id of the graph whether it stays.

        Raises:
            ValueError: the plan was made for another model.
        """
        for layer, count in self.filters.items():
            atoms = graph.ids.atoms.get(layer)
            if atoms is None or len(atoms) != count:
                found = "no such layer" if atoms is None else f"{len(atoms)} filters"
                raise ValueError(
                    f"the plan does not fit the model: it expects {count} filters in layer "
                    f"{layer!r}. Received: {found}"
                )
        for layer, indices in self.implanted.items():
            if len(indices) and layer not in graph.implantable:
                raise ValueError(
                    f"the plan does not fit the model: filters of layer {layer!r} cannot become 1x1"
                )
        flags = self.flags()
        alive = graph.ids.alive(flags)
        for layer in self.filters:
            self._check_groups(graph, layer, alive)
        return alive

    def _check_groups(self, graph: ChannelGraph, layer: str, alive: Flags) -> None:
        atoms = graph.ids.atoms[layer]
        disagree = alive[atoms] != alive[graph.ids.groups(atoms)]
        if disagree.any():
            raise ValueError(
                f"the plan does not fit the model: filter {int(np.argmax(disagree))} of layer "
                f"{layer!r} must stay or go together with filters of other layers"
            )
        for atom, stays in zip(atoms.tolist(), alive[atoms].tolist(), strict=True):
            reason = graph.ids.frozen_reason(atom)
            if reason and not stays:
                raise ValueError(
                    f"the plan does not fit the model: it removes filters of layer {layer!r}, "
                    f"which must all stay ({reason})"
                )
        if not alive[atoms].any():
            raise ValueError(f"the plan removes every filter of layer {layer!r}; one has to stay")

    def _check_indices(self) -> None:
        if set(self.kept) != set(self.filters) or not set(self.implanted) <= set(self.filters):
            raise ValueError("the plan must hold the kept filters of each of its layers")
        for layer, count in self.filters.items():
            both = np.concatenate([self.kept[layer], self.implanted.get(layer, [])])
            outside = both[(both < 0) | (both >= count)]
            if len(outside) or len(np.unique(both)) != len(both):
                raise ValueError(
                    f"the plan of layer {layer!r} must hold distinct indices in [0, {count}). "
                    f"Received: {self.kept[layer].tolist()}"
                )


def require_plan(plan: Any) -> None:
    """Checks that `plan` is one.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(plan, PruningPlan):
        raise TypeError(
            f"plan must be a PruningPlan. Received: {type(plan).__name__}; make one with "
            "plan_pruning(model, scores, prune_ratio)"
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two attributes of plans are equal; costs that are not known, NaN, are."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, str):
        return bool(one == other)
    return np.array_equal(one, other, equal_nan=True)


def _index_arrays(lists: Mapping[str, Any]) -> dict[str, npt.NDArray[np.int64]]:
    return {layer: np.array(sorted(indices), np.int64) for layer, indices in lists.items()}
