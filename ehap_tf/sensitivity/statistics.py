"""Running mean and variance of probes, and how sure a ranking is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]


class RunningMoments:
    """Mean and variance of vectors that arrive in blocks (Welford; Chan et al. 1979 for blocks)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(size)
        self._squares: Floats = np.zeros(size)

    def add(self, block: npt.ArrayLike) -> None:
        """Takes a block of shape (observations, size)."""
        values = np.asarray(block, np.float64)
        n = len(values)
        if n == 0:
            return
        mean = values.mean(axis=0)
        delta = mean - self.mean
        total = self.count + n
        self.mean = self.mean + delta * (n / total)
        self._squares = (
            self._squares + ((values - mean) ** 2).sum(axis=0) + delta**2 * (self.count * n / total)
        )
        self.count = total

    @property
    def standard_error(self) -> Floats:
        """Of the mean: sqrt(sample variance / observations); NaN before the second one."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self._squares / (self.count - 1) / self.count)


def misranked_share(scores: Floats, standard_error: Floats) -> float:
    """The expected share of filters on the wrong side of a pruning threshold, at worst.

    A filter at distance d from the threshold with standard error e is on the wrong side with
    probability Phi(-d / e). The threshold is not known when filters are ranked; the share is the
    largest among thresholds that remove 10, 20, ... 90% of the filters.

    Returns:
        A number in [0, 0.5].
    """
    thresholds = np.quantile(scores, np.arange(1, 10) / 10)
    distance = np.abs(scores[:, np.newaxis] - thresholds)
    error = standard_error[:, np.newaxis]
    with np.errstate(divide="ignore", invalid="ignore"):
        # A filter without error is where it seems to be.
        ratio = np.where(error > 0, distance / error, np.inf)
    return float(special.ndtr(-ratio).mean(axis=0).max())
