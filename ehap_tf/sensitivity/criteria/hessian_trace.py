"""The relative Hessian trace: Tr(H_c) / n_c * |w_c|^2 (HAP, arXiv 2101.08940)."""

from __future__ import annotations

import numpy as np

from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.estimators.estimation import estimate_trace, prepare
from ehap_tf.sensitivity.network.filters import PrunableLayer
from ehap_tf.sensitivity.statistics import Floats


def hessian_trace(request: Request) -> Result:
    """Second-order sensitivity: average curvature of a filter's weights times its energy."""
    factors = np.concatenate([relative_factors(layer) for layer in request.layers])
    trace = estimate_trace(request, prepare(request), factors)
    return Result(
        scores=trace.mean * factors,
        trace=trace.mean,
        standard_error=None if trace.standard_error is None else trace.standard_error * factors,
        trace_standard_error=trace.standard_error,
        estimator=request.estimator,
        precision=request.precision,
        probes=trace.probes,
        quantity=trace.quantity,
        notes=trace.notes,
    )


def relative_factors(layer: PrunableLayer) -> Floats:
    """|w_c|^2 / n_c for each filter: the mean square of its weights."""
    return np.square(layer.kernel).reshape(-1, layer.filters).mean(axis=0)
