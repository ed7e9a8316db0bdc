"""How an estimate settles as probes are added: for benchmarks, and to choose a budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.models.precision import resolve_precision
from ehap_tf.sensitivity.criteria.hessian_trace import relative_factors
from ehap_tf.sensitivity.criteria.request import Request
from ehap_tf.sensitivity.estimators.estimation import prepare, trace_samples
from ehap_tf.sensitivity.estimators.sampling import CHUNK
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.statistics import Floats, RunningMoments


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The relative Hessian trace after some probes.

    Attributes:
        probes: how many.
        seconds: spent on probes so far, without building and compiling the graph.
        scores: of all filters, layers end to end.
        standard_error: of the scores.
    """

    probes: int
    seconds: float
    scores: Floats
    standard_error: Floats


def convergence(
    model: tf_keras.Model,
    data: Any,
    loss: Any,
    counts: Sequence[int],
    estimator: str = "hutchinson",
    precision: str = "fp32",
    batch_size: int | None = None,
    seed: int = 0,
) -> Iterator[Snapshot]:
    """Yields the relative Hessian trace after each of the given numbers of probes.

    Args:
        model: as for `rank_filters`, like all that is not listed here.
        data: the Hessian batch.
        loss: its loss.
        counts: increasing numbers of probes.
        estimator: "hutchinson" or "gauss_newton".
        precision: "fp32", "fp16", "bf16" or "auto".
        batch_size: examples differentiated at once.
        seed: of the probes.

    Raises:
        ValueError: as for `rank_filters`, or `counts` does not increase.
    """
    if list(counts) != sorted(set(counts)) or not counts or counts[0] < 1:
        raise ValueError(f"counts must be increasing numbers of at least 1. Received: {counts}")
    request = Request(
        model=model, data=HessianBatch(data, batch_size), loss=loss, estimator=estimator,
        precision=resolve_precision(precision), probes=counts[-1], seed=seed,
    )  # fmt: skip
    network = prepare(request)
    sample, _ = trace_samples(request, network)
    factors = np.concatenate([relative_factors(layer) for layer in request.layers])
    sample(np.zeros(1, np.int32))  # builds and compiles
    moments, seconds = RunningMoments(len(factors)), 0.0
    for count in counts:
        while moments.count < count:
            stop = min(count, moments.count + CHUNK)
            start = time.perf_counter()
            moments.add(sample(np.arange(moments.count, stop, dtype=np.int32)))
            seconds += time.perf_counter() - start
        yield Snapshot(count, seconds, moments.mean * factors, moments.standard_error * factors)
