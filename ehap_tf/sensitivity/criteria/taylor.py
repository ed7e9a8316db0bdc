"""Taylor importance (Molchanov et al. 2019, arXiv 1906.10771), on gates and on weights.

Squared a minibatch of `MINIBATCH` examples and averaged over minibatches. The minibatches are cut
at fixed places, so that scores do not depend on how much is computed at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ehap_tf.sensitivity.criteria.gate_curvature import (
    by_filter,
    curvature_notes,
    estimate_curvature,
)
from ehap_tf.sensitivity.criteria.hessian_trace import relative_factors
from ehap_tf.sensitivity.criteria.registry import Request, Result, register_criterion
from ehap_tf.sensitivity.estimators import make_runner, prepare, sampled_trace
from ehap_tf.sensitivity.gate_derivatives import gate_gradient_step
from ehap_tf.sensitivity.hutchinson import Step
from ehap_tf.sensitivity.network import Network
from ehap_tf.sensitivity.statistics import Floats
from ehap_tf.sensitivity.weight_gradient import weight_gradient_step

MINIBATCH = 32
"""Examples whose mean gradient is squared."""


@register_criterion("taylor_fo")
def first_order(request: Request) -> Result:
    """g_c^2 on gates, where removal acts."""
    network = prepare(request, by_group=True)
    return by_filter(network, _first_order(request, network, gate_gradient_step(network), "gates"))


@register_criterion("taylor_fo_weight")
def first_order_weights(request: Request) -> Result:
    """(sum of gradient times weight over a filter's weights)^2."""
    network = prepare(request)
    return _first_order(request, network, weight_gradient_step(network), "weights")


@register_criterion("taylor_so")
def second_order(request: Request) -> Result:
    """(-g_c + h_c / 2)^2 on gates; g a minibatch, h over all data by the Gauss-Newton sketch."""
    network = prepare(request, by_group=True)
    curvature = estimate_curvature(request, network)
    changes = [
        -gradient + curvature.mean / 2
        for gradient in _gradients(request, network, gate_gradient_step(network))
    ]
    result = Result(
        scores=np.square(changes).mean(axis=0),
        signed=np.mean(changes, axis=0),
        trace=curvature.mean,
        estimator="gauss_newton" if curvature.probes else "exact",
        precision=request.precision,
        probes=curvature.probes,
        quantity="second-order Taylor importance on gates",
        notes=curvature_notes(request, network),
    )
    return by_filter(network, result)


@register_criterion("taylor_so_weight")
def second_order_weights(request: Request) -> Result:
    """(-g_c . w_c + w_c' H_c w_c / 2)^2, with Tr(H_c) / n_c * |w_c|^2 for the quadratic form."""
    network = prepare(request)
    factors = np.concatenate([relative_factors(layer) for layer in request.layers])
    sketch = dataclasses.replace(request, estimator="gauss_newton")
    trace = sampled_trace(sketch, network, factors)
    changes = [
        -gradient + trace.mean * factors / 2
        for gradient in _gradients(request, network, weight_gradient_step(network))
    ]
    return Result(
        scores=np.square(changes).mean(axis=0),
        signed=np.mean(changes, axis=0),
        trace=trace.mean,
        trace_standard_error=trace.standard_error,
        estimator="gauss_newton",
        precision=request.precision,
        probes=trace.probes,
        quantity="second-order Taylor importance on weights",
        notes=trace.notes,
    )


def _first_order(request: Request, network: Network, step: Step, place: str) -> Result:
    gradients = list(_gradients(request, network, step))
    return Result(
        scores=np.square(gradients).mean(axis=0),
        signed=-np.mean(gradients, axis=0),
        precision=request.precision,
        quantity=f"first-order Taylor importance on {place}",
    )


def _gradients(request: Request, network: Network, step: Step) -> Iterator[Floats]:
    """The gradient of each minibatch's mean loss."""
    runner = make_runner(request, network, step)
    batch = request.batch
    done = 0
    for minibatch in batch.blocks(MINIBATCH):
        examples = sum(len(piece) for piece in minibatch)
        # The loss is a mean over all the data; a sum stays a sum.
        factor = batch.examples / examples if network.loss.averaged else 1.0
        yield runner.sum(np.zeros(1, np.int32), minibatch)[0] * factor
        done += examples
        request.progress(done, batch.examples, {})
