"""Taylor importance (Molchanov et al. 2019, arXiv 1906.10771), on gates and on weights.

Squared per minibatch of `MINIBATCH` examples and averaged over minibatches, each by its number of
examples. The minibatches are cut at fixed places, so that scores do not depend on how much is
computed at once.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ehap_tf.sensitivity.criteria.gate_curvature import (
    by_filter,
    curvature_notes,
    estimate_curvature,
)
from ehap_tf.sensitivity.criteria.hessian_trace import relative_factors
from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.estimators.estimation import estimate_trace, make_runner, prepare
from ehap_tf.sensitivity.estimators.hutchinson import Step
from ehap_tf.sensitivity.estimators.weight_gradient import weight_gradient_step
from ehap_tf.sensitivity.gates.gate_derivatives import gate_gradient_step
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats

MINIBATCH = 32
"""Examples whose mean gradient is squared."""


def first_order(request: Request) -> Result:
    """g_c^2 on gates, where removal acts."""
    network = prepare(request, by_group=True)
    return by_filter(network, _first_order(request, network, gate_gradient_step(network), "gates"))


def first_order_weights(request: Request) -> Result:
    """(sum of gradient times weight over a filter's weights)^2."""
    network = prepare(request)
    return _first_order(request, network, weight_gradient_step(network), "weights")


def second_order(request: Request) -> Result:
    """(-g_c + h_c / 2)^2 on gates; g per minibatch, h over all data by the Gauss-Newton sketch."""
    network = prepare(request, by_group=True)
    curvature = estimate_curvature(request, network)
    gradients, shares = _gradients(request, network, gate_gradient_step(network))
    changes = -gradients + curvature.mean / 2
    result = Result(
        scores=shares @ np.square(changes),
        signed=shares @ changes,
        trace=curvature.mean,
        trace_standard_error=curvature.standard_error if curvature.probes else None,
        estimator="gauss_newton" if curvature.probes else "exact",
        precision=request.precision,
        probes=curvature.probes,
        quantity="second-order Taylor importance on gates",
        notes=curvature_notes(request, network),
    )
    return by_filter(network, result)


def second_order_weights(request: Request) -> Result:
    """(-g_c . w_c + w_c' H_c w_c / 2)^2, with Tr(H_c) / n_c * |w_c|^2 for the quadratic form."""
    network = prepare(request)
    factors = np.concatenate([relative_factors(layer) for layer in request.layers])
    notes: tuple[str, ...] = ()
    if request.estimator == "hutchinson":
        request = dataclasses.replace(request, estimator="gauss_newton")
        notes = ("the trace is taken by the Gauss-Newton sketch, not by nested tapes",)
    trace = estimate_trace(request, network)
    gradients, shares = _gradients(request, network, weight_gradient_step(network))
    changes = -gradients + trace.mean * factors / 2
    return Result(
        scores=shares @ np.square(changes),
        signed=shares @ changes,
        trace=trace.mean,
        trace_standard_error=trace.standard_error,
        estimator=request.estimator,
        precision=request.precision,
        probes=trace.probes,
        quantity="second-order Taylor importance on weights",
        notes=notes + trace.notes,
    )


def _first_order(request: Request, network: Network, step: Step, place: str) -> Result:
    gradients, shares = _gradients(request, network, step)
    return Result(
        scores=shares @ np.square(gradients),
        signed=-shares @ gradients,
        precision=request.precision,
        quantity=f"first-order Taylor importance on {place}",
    )


def _gradients(request: Request, network: Network, step: Step) -> tuple[Floats, Floats]:
    """The gradient of the loss as each minibatch alone estimates it, and its share of examples."""
    runner = make_runner(request, network, step)
    examples = request.batch.examples
    gradients, shares = [], []
    done = 0
    for minibatch in request.batch.blocks(MINIBATCH):
        count = sum(len(piece) for piece in minibatch)
        gradients.append(runner.sum(np.zeros(1, np.int32), minibatch)[0] * examples / count)
        shares.append(count / examples)
        done += count
        request.progress(done, examples, {})
    return np.array(gradients), np.array(shares)
