"""What a filter is worth when others of its layer go before it: curvature between gates as well.

`obd` adds up h_c / 2 over the removed filters, as if each went alone. Filters of one layer do the
same work in part: their removals add up to more, or to less. The Gauss-Newton sketch that gives
the diagonal h_c = H_cc gives H_cd too, at the same cost, for the same rows u: H is the mean of
u u^T. A set R of filters changes the loss by about sum of H_cd / 2 over c, d in R, and the cheapest
next filter is the one of least H_cc / 2 + sum of H_cd over d in R. Filters are taken one by one,
layer by layer (between layers no terms are kept: the matrix stays small, and in the measurements of
docs/results.md they did not help), and a filter's score is what it costs at its turn. In tied mode
what goes together has one gate, and layers that share such groups are one layer here.

The centered form closes a gate to the channel's mean over the data instead of to zero. That is what
a network sees whose BatchNorm statistics are estimated again after surgery, or whose biases take
over the mean of what was removed: the constant part of a channel costs nothing.

`obs_joint` goes one step further: what is removed costs what the layers that read it cannot make up
for when their kernels are solved again, as `repair` does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ehap_tf.sensitivity.criteria.gate_curvature import by_filter, curvature_notes
from ehap_tf.sensitivity.criteria.refit import Refit, refits
from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.estimators import sampling
from ehap_tf.sensitivity.estimators.estimation import exact_sum, make_runner, prepare
from ehap_tf.sensitivity.estimators.gauss_newton import Vectors, basis_vectors, sign_vectors
from ehap_tf.sensitivity.estimators.output_curvature import require_known_curvature
from ehap_tf.sensitivity.estimators.scaling import Scales
from ehap_tf.sensitivity.gates.closing_gates import channel_means_step, gate_rows_step
from ehap_tf.sensitivity.gates.gate_derivatives import gate_count
from ehap_tf.sensitivity.gates.group_gates import find_groups
from ehap_tf.sensitivity.network.hessian_batch import MicroBatch
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats


def joint(request: Request) -> Result:
    """The predicted loss change of a filter's removal after the cheaper ones of its layer.

    For networks that are used as surgery leaves them, without recalibration.
    """
    return _joint(request, centered=False)


def joint_centered(request: Request) -> Result:
    """The same when the mean of what is removed is made up for, as recalibration does."""
    return _joint(request, centered=True)


def joint_refit(request: Request) -> Result:
    """The same when the layers that read the filters are repaired: optimal brain surgeon.

    The centered loss change of each removal, times the share of the error at the readers' outputs
    that least squares leaves (`ehap_tf.sensitivity.criteria.refit`). Where filters go into a sum
    nobody can make up for them, and the scores are those of `obd_joint_centered`.
    """
    return _joint(request, centered=True, refit=True)


def refit_losses(curvature: Floats, refit: Refit) -> Floats:
    """What each gate costs when they close in the order of a `Refit`.

    Args:
        curvature: as for `joint_removal_losses`.
        refit: the order, and what is left of the loss change.

    Returns:
        As `joint_removal_losses`.
    """
    ordered = curvature[np.ix_(refit.order, refit.order)]
    whole = np.cumsum(np.diag(ordered) / 2 + np.tril(ordered, -1).sum(1))
    return _rising(refit.order, np.diff(refit.left * whole, prepend=0.0))


def joint_removal_losses(curvature: Floats) -> Floats:
    """What each gate costs when gates close one after the other, the cheapest next one first.

    Args:
        curvature: symmetric, shape (filters, filters), positive semidefinite.

    Returns:
        Shape (filters,), increasing in the order of removal: a filter that gets cheaper because
        others went counts as much as the last of those, and a little more.
    """
    costs = np.diag(curvature) / 2
    order = np.zeros(len(costs), np.int64)
    paid = np.zeros(len(costs))
    waiting = np.ones(len(costs), np.bool_)
    for place in range(len(costs)):
        next_one = int(np.argmin(np.where(waiting, costs, np.inf)))
        order[place], paid[place] = next_one, costs[next_one]
        waiting[next_one] = False
        costs = costs + curvature[next_one]
    return _rising(order, paid)


def _rising(order: npt.NDArray[np.int64], costs: Floats) -> Floats:
    """By gate what each costs at its turn, never less than the one before and a little more."""
    losses, level = np.zeros(len(costs)), 0.0
    for one, cost in zip(order, costs, strict=True):
        level = max(float(np.nextafter(level, np.inf)), float(cost))
        losses[one] = level
    return losses


def _joint(request: Request, centered: bool, refit: bool = False) -> Result:
    network = prepare(request, by_group=True)
    require_known_curvature(network)
    size = gate_count(network)
    constants = channel_means(request, network) if centered else None
    exact = request.estimator == "exact"
    trace_error, probes = None, 0
    if exact:
        curvature = _LayerCurvature(request, network, basis_vectors, constants)
        trace = exact_sum(curvature.sample, network.output_size, size, request.progress)
    else:
        curvature = _LayerCurvature(request, network, sign_vectors(request.seed), constants)
        estimate = sampling.estimate(
            curvature.sample,
            size,
            request.probes,
            request.tolerance,
            None,
            request.progress,
        )
        trace, probes = estimate.mean, estimate.probes
        trace_error = estimate.standard_error
    scores = np.zeros(size)
    solved = _refits_of_parts(network, request) if refit else {}
    for part, total in zip(curvature.parts, curvature.sums, strict=True):
        mean, again = total / max(probes, 1), solved.get(tuple(part))
        scores[part] = joint_removal_losses(mean) if again is None else refit_losses(mean, again)
    result = Result(
        scores=scores,
        trace=trace,
        trace_standard_error=trace_error,
        estimator="exact" if exact else "gauss_newton",
        precision=request.precision,
        probes=probes,
        quantity=f"curvature of the loss between {'centered ' if centered else ''}gates of a layer",
        notes=curvature_notes(request, network),
    )
    return by_filter(network, result)


def _refits_of_parts(network: Network, request: Request) -> dict[tuple[int, ...], Refit]:
    """For the gates of one layer alone, in order, how they go; in tied mode as well."""
    found = refits(network, request.batch)
    ends = np.cumsum([layer.filters for layer in network.layers])
    filters = np.split(np.arange(ends[-1]), ends[:-1])
    if network.residual == "tied":
        gates = find_groups(network).of_filter
        alone = np.bincount(gates)[gates] == 1
        filters = [gates[mine] if alone[mine].all() else mine[:0] for mine in filters]
    parts = {}
    for layer, mine in zip(network.layers, filters, strict=True):
        if layer.name in found and len(mine):
            again = found[layer.name]
            places = np.argsort(np.argsort(mine))  # blocks of gates are sorted
            parts[tuple(np.sort(mine))] = Refit(places[again.order], again.left)
    return parts


def channel_means(request: Request, network: Network) -> Floats:
    """The mean of every channel over examples and positions, where the next layer reads.

    Returns:
        As `closing_forward` takes them.
    """
    runner = make_runner(request, network, channel_means_step(network), Scales(adaptive=False))
    total = runner.sum(np.zeros(1, np.int32), request.batch)[0]
    weight = sum(float(batch.weights.sum()) for batch in request.batch)
    return total / max(weight, 1e-12)


class _LayerCurvature:
    """Adds up u u^T, layer by layer, while the probes are drawn.

    Attributes:
        parts: for each layer the numbers of its gates.
        sums: one matrix per layer: the sum over probes and examples.
    """

    def __init__(
        self, request: Request, network: Network, vectors: Vectors, constants: Floats | None
    ) -> None:
        self._batch = request.batch
        self._runner = make_runner(request, network, gate_rows_step(network, vectors, constants))
        self._gates = gate_count(network)
        if network.residual == "tied":
            self.parts = list(find_groups(network).blocks)
        else:
            ends = np.cumsum([layer.filters for layer in network.layers])
            self.parts = np.split(np.arange(self._gates), ends[:-1])
        self.sums: list[Floats] = [np.zeros((len(part),) * 2) for part in self.parts]

    def sample(self, probes: np.ndarray) -> Floats:
        """The diagonal of each probe, shape (probes, gates)."""
        squares = np.zeros((len(probes), self._gates))
        for batch in self._batch:
            rows = self._rows(probes, batch)
            squares += np.square(rows).sum(axis=1)
            for part, total in zip(self.parts, self.sums, strict=True):
                mine = rows[..., part].reshape(-1, len(part))
                total += mine.T @ mine
        return squares

    def _rows(self, probes: np.ndarray, batch: MicroBatch) -> Floats:
        """The sketch of a micro-batch, shape (probes, examples, gates)."""
        rows = self._runner.sum(probes, [batch])
        return rows.reshape(len(probes), len(batch), -1)
