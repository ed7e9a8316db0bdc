"""Which filters go next: a part at a time, until a target is met."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence

import numpy as np

from ehap_tf.channels import ChannelGraph, Flags
from ehap_tf.pruning.plan.selection import cost_of
from ehap_tf.pruning.plan.units import Choice, Floats, Units


@dataclasses.dataclass(frozen=True)
class Target:
    """When to stop.

    Attributes:
        kind: "macs", "params" or "filters".
        value: share of the multiply-accumulates or parameters to keep, or filters to remove.
    """

    kind: str
    value: float

    @classmethod
    def of(
        cls, target_macs: float | None, target_params: float | None, target_filters: int | None
    ) -> Target:
        """The target that a caller named.

        Raises:
            ValueError: not exactly one is given, or it is out of range.
        """
        given = {
            name: value
            for name, value in (
                ("target_macs", target_macs),
                ("target_params", target_params),
                ("target_filters", target_filters),
            )
            if value is not None
        }
        if len(given) != 1:
            raise ValueError(
                "give exactly one of target_macs, target_params and target_filters. Received: "
                f"{given}"
            )
        ((name, value),) = given.items()
        if name != "target_filters" and not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], a fraction to keep. Received: {value}")
        if name == "target_filters" and not (isinstance(value, numbers.Integral) and value >= 0):
            raise ValueError(f"{name} must be a whole number of at least 0. Received: {value}")
        # Plain numbers: numpy's do not go into JSON.
        plain = int(value) if name == "target_filters" else float(value)
        return cls(name.removeprefix("target_"), plain)

    def reached(self, graph: ChannelGraph, alive: Mapping[str, Flags]) -> bool:
        """Whether a model with these filters meets the target."""
        if self.kind == "filters":
            return removed(alive) >= self.value
        whole = {layer: np.ones(len(flags), np.bool_) for layer, flags in alive.items()}
        # Sums of whole numbers: a target of exactly what is left must not fail by rounding.
        return cost_of(graph, self.kind, alive) <= self.value * cost_of(graph, self.kind, whole)


def removed(alive: Mapping[str, Flags]) -> int:
    """The number of filters that are gone."""
    return sum(int((~flags).sum()) for flags in alive.values())


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The settings of a stepwise removal.

    Attributes:
        graph: the trace of the model.
        target: when to stop.
        filters_per_step: how many filters go at a time.
        prune_ratio_limit: as in `plan_pruning`.
        round_to: as in `plan_pruning`.
        keep_layers: as in `plan_pruning`.
    """

    graph: ChannelGraph
    target: Target
    filters_per_step: int
    prune_ratio_limit: float
    round_to: int
    keep_layers: Sequence[str]

    def next(self, alive: Mapping[str, Flags], scores: Mapping[str, Floats]) -> dict[str, Flags]:
        """The filters that are left after one more step.

        As few as reach `filters_per_step` or the target; all that the limits allow, where they
        allow no more than that.

        Args:
            alive: the filters that are there.
            scores: layer path -> one score per filter; layers that are not named stay whole.
        """
        units = self._units(alive, scores)
        wanted = removed(alive) + self.filters_per_step

        def enough(choice: Choice) -> bool:
            left = self._left(units, choice, alive)
            return removed(left) >= wanted or self.target.reached(self.graph, left)

        choice = units.fewest(enough) or units.without_lowest(int(units.free.sum()))
        return self._left(units, choice, alive)

    def require_reachable(self, layers: Sequence[str]) -> None:
        """Checks that the target can be met with filters of `layers` alone.

        Raises:
            ValueError: it cannot; says what is in the way.
        """
        if not layers:
            raise ValueError("there is no layer whose filters can be scored")
        whole = {name: np.ones(len(ids), np.bool_) for name, ids in self.graph.ids.atoms.items()}
        if self.target.kind == "macs" and np.isnan(cost_of(self.graph, "macs", whole)):
            raise ValueError(
                "target_macs needs a model whose input has a fixed size; give target_params"
            )
        units = self._units(whole, {name: np.ones(len(whole[name])) for name in layers})
        least = self._left(units, units.without_lowest(int(units.free.sum())), whole)
        if self.target.reached(self.graph, least):
            return
        held = ", ".join(units.held()) or "no layer"
        what = f"at most {removed(least)} filters can go"
        if self.target.kind != "filters":
            share = cost_of(self.graph, self.target.kind, least) / cost_of(
                self.graph, self.target.kind, whole
            )
            what = f"at least {share:.4g} is left"
        raise ValueError(
            f"the target of {self.target.value:g} ({self.target.kind}) cannot be reached: {what} "
            f"with prune_ratio_limit={self.prune_ratio_limit:g} and round_to={self.round_to}. "
            f"Filters stay in: {held}"
        )

    def _units(self, alive: Mapping[str, Flags], scores: Mapping[str, Floats]) -> Units:
        # Filters that are gone come first in the order, whatever their units' sums are.
        lowest = -1 - sum(float(np.abs(values).sum()) for values in scores.values())
        return Units(
            self.graph,
            {name: np.where(alive[name], values, lowest) for name, values in scores.items()},
            prune_ratio_limit=self.prune_ratio_limit,
            round_to=self.round_to,
            keep_layers=self.keep_layers,
            implant_ratio=0.0,
            cost_aware=None,
        )

    def _left(self, units: Units, choice: Choice, alive: Mapping[str, Flags]) -> dict[str, Flags]:
        flags, _ = units.flags(choice)
        return {layer: flags[layer] & alive[layer] for layer in flags}
