"""Per-filter curvature traces by the estimator that the caller chose."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ehap_tf.progress import ProgressCallback
from ehap_tf.sensitivity.estimators import sampling
from ehap_tf.sensitivity.estimators.gauss_newton import (
    BLOCK,
    Vectors,
    basis_vectors,
    gauss_newton_step,
    sign_vectors,
)
from ehap_tf.sensitivity.estimators.hutchinson import (
    Directions,
    Step,
    basis_directions,
    hutchinson_step,
    sign_directions,
)
from ehap_tf.sensitivity.estimators.output_curvature import is_convex, require_known_curvature
from ehap_tf.sensitivity.estimators.scaling import Scales
from ehap_tf.sensitivity.network.linearity import smooth_parts
from ehap_tf.sensitivity.network.network import Network, prepare_network
from ehap_tf.sensitivity.running.execution import ProbeRunner
from ehap_tf.sensitivity.statistics import Floats

if TYPE_CHECKING:
    from ehap_tf.sensitivity.criteria.request import Request

_LOG = logging.getLogger(__name__)

ESTIMATOR_NAMES = ("hutchinson", "gauss_newton", "exact")

HESSIAN_TRACE = "Hessian trace"
GAUSS_NEWTON_TRACE = "Gauss-Newton trace"

MAX_BASIS_WEIGHTS = 50_000
"""Beyond that many weights the exact Hessian trace would take one product per weight too many."""

_GRADIENT_MEMORY = 1 << 28

Sample = Callable[[npt.NDArray[np.int32]], Floats]
"""Probe numbers -> one row of per-filter values per probe."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """Per-filter traces, all layers end to end.

    Attributes:
        mean: the estimate.
        standard_error: None where nothing is sampled.
        probes: random vectors used.
        quantity: `HESSIAN_TRACE` or `GAUSS_NEWTON_TRACE`.
        notes: why, and what happened on the way.
    """

    mean: Floats
    standard_error: Floats | None
    probes: int
    quantity: str
    notes: tuple[str, ...] = ()


def estimate_trace(request: Request, network: Network, factors: Floats | None = None) -> Trace:
    """Runs the request's estimator on a network that was prepared for it.

    Args:
        request: what the caller asked for.
        network: its model, prepared.
        factors: turn traces into the scores that are judged; None where no factors do.
    """
    if request.estimator == "exact":
        return _exact(request, network)
    return _sampled(request, network, factors)


def _say_what_float16_is_here(precision: str) -> None:
    if precision == "fp16" and not tf.config.list_physical_devices("GPU"):
        _say_that_float16_is_emulated()


@functools.cache
def _say_that_float16_is_emulated() -> None:
    _LOG.warning(
        "float16 is emulated on this CPU (rounded operands, float32 kernels): precision 'fp32', or "
        "'bf16' with AMX, gives more or takes less"
    )


def prepare(request: Request, by_group: bool = False) -> Network:
    """A private copy of the request's model under its precision, on every replica.

    Args:
        request: what the caller asked for.
        by_group: the criterion can score groups of filters, where the request asks for them.
    """
    residual = request.residual if by_group else "union"
    _say_what_float16_is_here(request.precision)
    with request.replicas.scope():
        return prepare_network(
            request.model, request.loss, request.precision, request.batch, residual
        )


def make_runner(
    request: Request, network: Network, step: Step, scales: Scales | None = None
) -> ProbeRunner:
    """Compiles a step for the request's precision and replicas."""
    return ProbeRunner(
        network,
        step,
        request.replicas,
        scales or Scales(request.precision == "fp16"),
    )


def trace_samples(request: Request, network: Network) -> tuple[Sample, Scales]:
    """What the sampled estimators average; the scales tell what had to be repeated.

    Raises:
        ValueError: the estimator is not a sampled one, or cannot take the loss.
    """
    scales = Scales(request.precision == "fp16")
    if request.estimator == "hutchinson":
        directions = sign_directions(network, request.seed)
        return hessian_samples(request, network, directions, scales), scales
    if request.estimator == "gauss_newton":
        require_known_curvature(network)
        vectors = sign_vectors(request.seed)
        return gauss_newton_samples(request, network, vectors, BLOCK, scales), scales
    raise ValueError(
        f"estimator must be 'hutchinson' or 'gauss_newton'. Received: {request.estimator!r}"
    )


def _sampled(request: Request, network: Network, factors: Floats | None) -> Trace:
    """Averages probes; says of a sketch whether it is the Hessian trace."""
    sample, scales = trace_samples(request, network)
    result = sampling.estimate(
        sample,
        _filters(network),
        request.probes,
        request.tolerance,
        factors,
        request.progress,
    )
    quantity, notes = HESSIAN_TRACE, tuple[str, ...]()
    if request.estimator == "gauss_newton":
        quantity, notes = _what_it_is(network)
    return Trace(
        result.mean, result.standard_error, result.probes, quantity, notes + _repeated(scales)
    )


def _exact(request: Request, network: Network) -> Trace:
    """The Hessian trace: through Gauss-Newton where they are equal, else weight by weight."""
    scales = Scales(request.precision == "fp16")
    if is_convex(network.loss) and not smooth_parts(network.model, network.skipped):
        require_known_curvature(network)
        sample = gauss_newton_samples(request, network, basis_vectors, 1, scales)
        total = exact_sum(sample, network.output_size, _filters(network), request.progress)
        return Trace(total, None, 0, HESSIAN_TRACE, ("equal to the Gauss-Newton trace",))
    weights = sum(int(kernel.shape.num_elements()) for kernel in network.kernels)
    if weights > MAX_BASIS_WEIGHTS:
        raise ValueError(
            f"estimator 'exact' needs one product per weight for this network ({weights} weights, "
            f"at most {MAX_BASIS_WEIGHTS}), because its Hessian is not the Gauss-Newton matrix: "
            f"{', '.join(smooth_parts(network.model, network.skipped)) or network.loss.name}. Use "
            "'hutchinson' or 'gauss_newton'"
        )
    sample = hessian_samples(request, network, basis_directions(network), scales)
    total = exact_sum(sample, weights, _filters(network), request.progress)
    return Trace(total, None, 0, HESSIAN_TRACE, ("one product per weight",))


def hessian_samples(
    request: Request, network: Network, directions: Directions, scales: Scales
) -> Sample:
    """The products v * (H v) by filter over the whole Hessian batch, for given probes."""
    runner = make_runner(request, network, hutchinson_step(network, directions), scales)
    return lambda probes: runner.sum(probes, request.batch)


def gauss_newton_samples(
    request: Request, network: Network, vectors: Vectors, block: int, scales: Scales
) -> Sample:
    """Squared norms of back-propagated S v by filter, added over blocks of examples."""
    whole_blocks = request.batch.largest >= min(block, request.batch.examples)
    step = gauss_newton_step(network, vectors, squared=whole_blocks)
    runner = make_runner(request, network, step, scales)
    if whole_blocks:
        return lambda probes: runner.sum(
            probes, (batch for blocks in request.batch.blocks(block) for batch in blocks)
        )
    weights = sum(int(kernel.shape.num_elements()) for kernel in network.kernels)
    together = max(1, _GRADIENT_MEMORY // (8 * weights))

    def in_parts(probes: npt.NDArray[np.int32]) -> Floats:
        rows = []
        for start in range(0, len(probes), together):
            part = probes[start : start + together]
            blocks = request.batch.blocks(block)
            rows.append(sum(_squared_norms(runner.sum(part, b), network) for b in blocks))
        return np.concatenate(rows)

    return in_parts


def _squared_norms(gradients: Floats, network: Network) -> Floats:
    """Rows of all weights end to end -> rows of squared norms by filter."""
    pieces, start = [], 0
    for layer in network.layers:
        end = start + layer.filter_size * layer.filters
        piece = gradients[:, start:end].reshape(len(gradients), *layer.weight.shape)
        piece = np.moveaxis(piece, layer.filter_axis, -1)
        pieces.append(np.square(piece).reshape(len(gradients), -1, layer.filters).sum(axis=1))
        start = end
    return np.concatenate(pieces, axis=1)


def exact_sum(sample: Sample, terms: int, size: int, progress: ProgressCallback) -> Floats:
    """The sum of terms 0, 1, ... `terms` - 1."""
    total = np.zeros(size)
    for chunk in sampling.chunks(terms):
        total += sample(chunk).sum(axis=0)
        progress(int(chunk[-1]) + 1, terms, {})
    return total


def _filters(network: Network) -> int:
    return sum(layer.filters for layer in network.layers)


def _what_it_is(network: Network) -> tuple[str, tuple[str, ...]]:
    smooth = smooth_parts(network.model, network.skipped)
    if not smooth:
        note = "the Gauss-Newton trace equals it: every layer is piecewise linear"
        return HESSIAN_TRACE, (note,)
    return GAUSS_NEWTON_TRACE, (f"not the Hessian's, because of {', '.join(smooth)}",)


def _repeated(scales: Scales) -> tuple[str, ...]:
    if not scales.repeated:
        return ()
    return (f"{scales.repeated} probes repeated at another loss scale",)
