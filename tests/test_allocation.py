"""The best choices under a budget, against all of them tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ehap_tf.allocation import cheapest


def total(values, places) -> float:
    return float(sum(one[place] for one, place in zip(values, places, strict=True)))


@pytest.mark.quick
def test_the_least_loss_is_found_as_by_trying_everything():
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = rng.integers(1, 5, rng.integers(1, 6))
        losses = [rng.uniform(0.0, 10.0 ** rng.integers(-3, 4), size) for size in sizes]
        costs = [np.round(rng.uniform(0.0, 1e6, size)) for size in sizes]
        everything = [
            (total(losses, places), total(costs, places))
            for places in itertools.product(*(range(size) for size in sizes))
        ]
        least, most = (f(cost for _, cost in everything) for f in (min, max))
        budget = rng.uniform(least, most) if most > least else least
        chosen = cheapest(losses, costs, budget)
        loss = total(losses, chosen)
        assert total(costs, chosen) <= budget * (1 + 1e-9)
        assert loss == pytest.approx(min(lo for lo, cost in everything if cost <= budget), rel=1e-5)


def test_a_larger_budget_is_never_worse():
    rng = np.random.default_rng(1)
    losses = [np.sort(rng.exponential(size=32))[::-1] for _ in range(54)]
    costs = [np.sort(rng.exponential(size=32)) for _ in range(54)]
    everything = sum(cost.max() for cost in costs)
    before = np.inf
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        chosen = cheapest(losses, costs, share * everything)
        loss = total(losses, chosen)
        assert loss <= before * (1 + 1e-5)
        before = loss


def test_a_budget_below_everything_is_refused():
    with pytest.raises(ValueError, match=r"the cheapest choices cost 3, more than 2"):
        cheapest([np.zeros(2), np.zeros(1)], [np.array([1.0, 5.0]), np.array([2.0])], 2.0)
