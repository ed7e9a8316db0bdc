"""One choice for each of several things, the best under a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

Floats = npt.NDArray[np.float64]

GAP = 1e-6
"""By which the sum of losses may exceed the least possible one, relatively."""


def cheapest(
    losses: Sequence[Floats], costs: Sequence[Floats], budget: float, seconds: float = 60.0
) -> list[int]:
    """Chooses one of each thing's choices so that the sum of losses is least within the budget.

    The multiple-choice knapsack, solved exactly (HiGHS, by branch and bound).

    Args:
        losses: for each thing a vector, what each of its choices loses.
        costs: what they cost, likewise.
        budget: that the sum of costs must not exceed.
        seconds: after which the best that was found is taken.

    Returns:
        For each thing the index of its choice.

    Raises:
        ValueError: no choices fit the budget.
    """
    least = sum(float(np.min(cost)) for cost in costs)
    if least > budget:
        raise ValueError(f"the cheapest choices cost {least:.6g}, more than {budget:.6g}")
    sizes = [len(loss) for loss in losses]
    # Numbers near one: the solver's tolerances are absolute.
    loss, cost = (np.concatenate(parts).astype(np.float64) for parts in (losses, costs))
    loss /= np.abs(loss).max() or 1.0
    scale = float(np.abs(cost).max()) or 1.0
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one_each = scipy.sparse.csr_array(
        (np.ones(len(loss)), (rows, np.arange(len(loss)))), shape=(len(sizes), len(loss))
    )
    found = scipy.optimize.milp(
        loss,
        integrality=np.ones(len(loss)),
        bounds=scipy.optimize.Bounds(0.0, 1.0),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1.0, 1.0),
            scipy.optimize.LinearConstraint(cost[None] / scale, -np.inf, budget / scale),
        ],
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    if found.x is None:
        raise RuntimeError(f"no allocation was found: {found.message}")
    starts = np.cumsum([0, *sizes[:-1]])
    return [
        int(np.argmax(found.x[start : start + size]))
        for start, size in zip(starts, sizes, strict=True)
    ]
