"""Per-filter curvature traces by the estimator that the caller chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from ehap_tf.sensitivity.execution import ProbeRunner
from ehap_tf.sensitivity.hutchinson import hutchinson_step
from ehap_tf.sensitivity.network import Network, prepare_network
from ehap_tf.sensitivity.sampling import chunks, estimate
from ehap_tf.sensitivity.scaling import Scales
from ehap_tf.sensitivity.statistics import Floats

if TYPE_CHECKING:
    from ehap_tf.sensitivity.criteria.registry import Request


@dataclasses.dataclass(frozen=True)
class Trace:
    """Per-filter traces, all layers end to end.

    Attributes:
        mean: the estimate.
        standard_error: None where nothing is sampled.
        probes: random vectors used.
        quantity: "Hessian trace" or "Gauss-Newton trace".
        notes: why, and what happened on the way.
    """

    mean: Floats
    standard_error: Floats | None
    probes: int
    quantity: str
    notes: tuple[str, ...] = ()


def estimate_trace(request: Request, factors: Floats) -> Trace:
    """Runs the request's estimator; `factors` turn traces into the scores that are compared."""
    with request.replicas.scope():
        network = prepare_network(request.model, request.loss, request.precision, request.batch)
    return _ESTIMATORS[request.estimator](request, network, factors)


def _hutchinson(request: Request, network: Network, factors: Floats) -> Trace:
    compiled = needs_xla(request.precision)
    scales = Scales(adaptive=request.precision == "fp16")
    runner = ProbeRunner(
        network,
        request.batch,
        hutchinson_step(network, request.seed, compiled),
        request.replicas,
        scales,
        fixed_probes=len(chunks(request.probes)[0]) if compiled else None,
    )
    result = estimate(
        runner.sum, len(factors), request.probes, request.tolerance, factors, request.progress
    )
    notes = (f"{scales.repeated} probes repeated at another scale",) if scales.repeated else ()
    return Trace(result.mean, result.standard_error, result.probes, "Hessian trace", notes)


def needs_xla(precision: str) -> bool:
    """Whether a precision is only usable through XLA here."""
    del precision
    return False


_ESTIMATORS: dict[str, Callable[[Request, Network, Floats], Trace]] = {"hutchinson": _hutchinson}

ESTIMATOR_NAMES = tuple(_ESTIMATORS)
