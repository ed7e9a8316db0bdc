"""The loop over probes: chunks, micro-batches, mean and error, when to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ehap_tf.progress import ProgressCallback
from ehap_tf.sensitivity.statistics import Floats, RunningMoments, misranked_share

CHUNK = 8
"""Probes that share one gradient graph."""

MIN_PROBES = 8
"""Before that many, standard errors are too rough to stop on."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean over probes.

    Attributes:
        mean: per filter, all layers end to end.
        standard_error: of the mean; NaN with a single probe.
        probes: how many were used.
        misranked: the expected share of filters on the wrong side of a threshold; NaN where it
            is not judged.
    """

    mean: Floats
    standard_error: Floats
    probes: int
    misranked: float


def estimate(
    sample: Callable[[np.ndarray], np.ndarray],
    size: int,
    probes: int,
    tolerance: float | None,
    factors: Floats | None,
    progress: ProgressCallback,
    offset: Floats | float = 0.0,
) -> Estimate:
    """Averages `sample` over probes 0, 1, ... until the budget is spent or the ranking is stable.

    Args:
        sample: probe numbers -> values, shape (probes, size).
        size: number of filters.
        probes: the budget.
        tolerance: stops when the expected share of misranked filters is below; None never stops.
        factors: turn a trace into a score; rankings are judged by scores. None where no factors
            do, and no ranking is judged.
        progress: called after each chunk.
        offset: added to a trace times its factor.
    """
    moments = RunningMoments(size)
    misranked = float("nan")
    for chunk in chunks(probes):
        moments.add(sample(chunk))
        figures = {}
        if factors is not None and moments.count >= 2:
            scores = moments.mean * factors + offset
            misranked = misranked_share(scores, moments.standard_error * factors)
            figures["misranked"] = misranked
        progress(moments.count, probes, figures)
        if tolerance is not None and moments.count >= MIN_PROBES and misranked < tolerance:
            break
    return Estimate(moments.mean, moments.standard_error, moments.count, misranked)


def chunks(probes: int) -> list[np.ndarray]:
    """The probe numbers in chunks of nearly one size, at most `CHUNK` each."""
    return np.array_split(np.arange(probes, dtype=np.int32), -(-probes // CHUNK))
