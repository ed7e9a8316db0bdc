"""Second-order criteria on gates: what the loss's curvature says about removing a filter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.estimators import sampling
from ehap_tf.sensitivity.estimators.estimation import exact_sum, make_runner, prepare
from ehap_tf.sensitivity.estimators.gauss_newton import basis_vectors, sign_vectors
from ehap_tf.sensitivity.estimators.output_curvature import require_known_curvature
from ehap_tf.sensitivity.estimators.sampling import Estimate
from ehap_tf.sensitivity.gates.gate_derivatives import (
    gate_count,
    gate_curvature_step,
    gate_gradient_step,
)
from ehap_tf.sensitivity.gates.group_gates import find_groups
from ehap_tf.sensitivity.network.linearity import smooth_parts
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats


def gate_curvature(request: Request) -> Result:
    """h_c / 2, the curvature half of the loss change when the filter's gate closes.

    Non-negative, and additive enough to remove many filters together. The name is for Optimal
    Brain Damage (LeCun et al. 1990), whose saliency this is with gates for weights.
    """
    network = prepare(request, by_group=True)
    curvature = estimate_curvature(request, network, offset=0.0)
    return _result(request, network, curvature, scores=curvature.mean / 2, signed=None)


def quadratic(request: Request) -> Result:
    """-g_c + h_c / 2: the predicted loss change when this one filter is removed, signed.

    Predicts a single removal almost perfectly, and is a poor criterion for removing many: filters
    whose removal alone seems to lower the loss do not add up.
    """
    network = prepare(request, by_group=True)
    runner = make_runner(request, network, gate_gradient_step(network))
    gradient = runner.sum(np.zeros(1, np.int32), request.batch)[0]
    curvature = estimate_curvature(request, network, offset=-gradient)
    change = -gradient + curvature.mean / 2
    return _result(request, network, curvature, scores=change, signed=change)


def estimate_curvature(
    request: Request, network: Network, offset: Floats | float | None = None
) -> Estimate:
    """Estimates h by the Gauss-Newton sketch on gates, or adds it up output by output.

    Args:
        request: what the caller asked for.
        network: prepared for it.
        offset: the scores are this and h / 2, by which the ranking is judged; None where they are
            not linear in h, and it is not judged.

    Returns:
        One number per gate: per filter, or in tied mode per group of filters.
    """
    require_known_curvature(network)
    size = gate_count(network)
    if request.estimator == "exact":
        outputs = network.output_size
        runner = make_runner(
            dataclasses.replace(request, probes=outputs),
            network,
            gate_curvature_step(network, basis_vectors),
        )
        total = exact_sum(
            lambda numbers: runner.sum(numbers, request.batch), outputs, size, request.progress
        )
        return Estimate(total, np.zeros(size), 0, 0.0)
    runner = make_runner(request, network, gate_curvature_step(network, sign_vectors(request.seed)))
    return sampling.estimate(
        lambda probes: runner.sum(probes, request.batch),
        size,
        request.probes,
        request.tolerance,
        None if offset is None else np.full(size, 0.5),
        request.progress,
        0.0 if offset is None else offset,
    )


def curvature_notes(request: Request, network: Network) -> tuple[str, ...]:
    """What a reader of gate scores should know."""
    notes = []
    if request.estimator == "hutchinson":
        notes.append("gate curvature is taken by the Gauss-Newton sketch, not by nested tapes")
    smooth = smooth_parts(network.model, network.skipped)
    if smooth:
        notes.append(f"Gauss-Newton part of the curvature only, because of {', '.join(smooth)}")
    return tuple(notes)


def _result(
    request: Request,
    network: Network,
    curvature: Estimate,
    scores: np.ndarray,
    signed: np.ndarray | None,
) -> Result:
    sampled = curvature.probes > 0
    return by_filter(
        network,
        Result(
            scores=scores,
            signed=signed,
            trace=curvature.mean,
            standard_error=curvature.standard_error / 2 if sampled else None,
            trace_standard_error=curvature.standard_error if sampled else None,
            estimator="gauss_newton" if sampled else "exact",
            precision=request.precision,
            probes=curvature.probes,
            quantity="curvature of the loss on gates",
            notes=curvature_notes(request, network),
        ),
    )


def by_filter(network: Network, result: Result) -> Result:
    """One number per filter of what has one per gate: in tied mode its share of the group's."""
    if network.residual != "tied":
        return result
    groups = find_groups(network)
    vectors: dict[str, Any] = {
        name: groups.shares(values)
        for name in ("scores", "trace", "standard_error", "trace_standard_error", "signed")
        if (values := getattr(result, name)) is not None
    }
    note = (
        f"{len(groups.of_filter)} filters scored in {groups.count} groups that go together, a "
        "filter by its share"
    )
    return dataclasses.replace(result, **vectors, notes=(*result.notes, note))
