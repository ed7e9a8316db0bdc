"""The oracle: every filter removed in turn, and the loss measured."""

from __future__ import annotations

import numpy as np

from ehap_tf.sensitivity.criteria.gate_curvature import by_filter
from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.estimators.estimation import make_runner, prepare
from ehap_tf.sensitivity.estimators.scaling import Scales
from ehap_tf.sensitivity.gates.gate_derivatives import gate_count, removal_loss_step
from ehap_tf.sensitivity.statistics import Floats

TOGETHER = 16
"""Filters whose loss is computed in one call."""


def oracle(request: Request) -> Result:
    """|L without the filter - L|, one filter at a time; `signed` has the change with its sign.

    Options (see `oracle_importance`): `checkpoint`, whose `begin` gives a vector of losses with NaN
    where not yet measured, or None, and whose `keep` is called with it as it fills.
    """
    network = prepare(request, by_group=True)
    filters = gate_count(network)
    runner = make_runner(request, network, removal_loss_step(network), Scales(adaptive=False))
    # The last entry is the loss of the whole network: no filter has that number.
    losses: Floats = np.full(filters + 1, np.nan)
    checkpoint = request.options.get("checkpoint")
    if checkpoint is not None and (known := checkpoint.begin(request, network)) is not None:
        losses = known
    waiting = np.flatnonzero(np.isnan(losses)).astype(np.int32)
    for start in range(0, len(waiting), TOGETHER):
        numbers = waiting[start : start + TOGETHER]
        losses[numbers] = runner.sum(numbers, request.batch)[:, 0]
        if checkpoint is not None:
            checkpoint.keep(losses)
        request.progress(filters + 1 - len(waiting) + start + len(numbers), filters + 1, {})
    change = losses[:-1] - losses[-1]
    result = Result(
        scores=np.abs(change),
        signed=change,
        precision=request.precision,
        quantity="change of the loss when the filter is removed",
    )
    return by_filter(network, result)
