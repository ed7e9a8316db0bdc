"""Rounding of a matrix, one row of it after the other, so that its products stay right.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", 2022, arXiv 2210.17323), which calls the rows columns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

STEP_SHARES = np.array([1.0, 0.92, 0.84, 0.76, 0.68, 0.6])
"""Steps that are tried, as shares of the one at which the largest weight is the last integer."""
ROWS_AT_ONCE = 64
"""Rows whose errors are handed on together to those behind them."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of each column of a matrix.

    Attributes:
        steps: one for each column.
        levels: the last integer; the first is its negative.
        ends: as the matrix: 1 or -1 where the integer must be the last or the first, else 0. A
            column whose largest integer is the last one finds its own step again.
    """

    steps: Floats
    levels: int
    ends: Floats

    def integers(self, rows: Floats, places: Any) -> Floats:
        """The integers nearest to some rows of the matrix."""
        nearest = np.clip(np.rint(rows / self.steps), -self.levels, self.levels)
        ends = self.ends[places]
        return np.where(ends == 0, nearest, ends * self.levels)


def grid_of(matrix: Floats, levels: int, shares: Floats | float = 1.0) -> Grid:
    """Steps of a share of each column's largest magnitude over `levels`; 1 for a column of zeros.

    The largest weight keeps the place at the end.
    """
    sizes = np.abs(matrix)
    place, columns = sizes.argmax(0), np.arange(matrix.shape[1])
    largest = sizes[place, columns]
    ends = np.zeros_like(matrix)
    ends[place, columns] = np.sign(matrix[place, columns])
    return Grid(np.where(largest > 0, shares * largest / levels, 1.0), levels, ends)


def rounded_rows(matrix: Floats, gram: Floats, grid: Grid) -> Floats:
    """The integers of a matrix, each row rounded for the errors of those before.

    The rows go by falling diagonal of the Gram matrix. With U upper triangular and U^T U = H^-1,
    the error of row i is handed to row j > i times U_ij / U_ii: what minimises the error of the
    products over the rows that are not rounded yet.

    Args:
        matrix: shape (inputs, columns); the columns are independent.
        gram: H, positive definite, shape (inputs, inputs).
        grid: of each column.

    Returns:
        The integers in float64, shape (inputs, columns).
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    left = np.array(matrix[order], np.float64)
    factor = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    integers = np.empty_like(left)
    for start in range(0, len(left), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(left))
        errors = np.empty_like(left[start:stop])
        for row in range(start, stop):
            integers[order[row]] = one = grid.integers(left[row], order[row])
            errors[row - start] = error = (left[row] - one * grid.steps) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return integers


def rounded_matrix(matrix: Floats, wanted: Floats, gram: Floats, levels: int) -> Floats:
    """Multiples of one step in each column, whose products are near to those of `wanted`.

    Each column gets the best, by the error of its products, of `matrix` rounded to nearest and of
    `wanted` rounded row by row at each of `STEP_SHARES`. In each the largest integer is `levels`,
    so that rounding to nearest once more changes nothing.

    Args:
        matrix: as it is, shape (inputs, columns).
        wanted: with the products that are wanted, of the same shape.
        gram: see `rounded_rows`.
        levels: the last integer.
    """
    tried = np.tile(wanted, len(STEP_SHARES))
    grid = grid_of(tried, levels, np.repeat(STEP_SHARES, wanted.shape[1]))
    values = np.concatenate(
        [rounded_to_nearest(matrix, levels), rounded_rows(tried, gram, grid) * grid.steps], axis=1
    ).reshape(len(wanted), -1, wanted.shape[1])
    errors = np.stack([squared_error(one - wanted, gram) for one in values.swapaxes(0, 1)])
    best = errors.argmin(0)
    return np.take_along_axis(values, best[None, None], axis=1)[:, 0]


def rounded_to_nearest(matrix: Floats, levels: int) -> Floats:
    """Each weight at the nearest multiple of its column's step."""
    grid = grid_of(matrix, levels)
    return grid.integers(matrix, slice(None)) * grid.steps


def squared_error(difference: Floats, gram: Floats) -> Floats:
    """The mean squared products of each column of a difference of matrices."""
    return (difference * (gram @ difference)).sum(0)
