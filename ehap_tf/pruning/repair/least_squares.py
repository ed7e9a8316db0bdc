"""Linear regression from sums of products, for systems that may be singular."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[Any]

_ROWS = 4_096
"""Products of so many rows are taken in the type of the rows, and added up in float64."""


class Sums:
    """What the solution of a regression needs to know of its rows, added up part by part.

    There are `groups` independent systems of the same size; a Dense layer or a plain convolution is
    one, a depthwise convolution has one for each channel. Inputs and targets are centered: products
    are taken of what is left after the means of the first rows are subtracted, which keeps float32
    accurate, and the rest of the means is taken out at the end.
    """

    def __init__(self, groups: int, inputs: int, targets: int) -> None:
        self.count = 0
        self._gram = np.zeros((groups, inputs, inputs))
        self._cross = np.zeros((groups, inputs, targets))
        self._squares = np.zeros((groups, targets))
        self._inputs = np.zeros((groups, 1, inputs))
        self._targets = np.zeros((groups, 1, targets))
        self._shift: tuple[Floats, Floats] | None = None

    def add(self, inputs: Floats, targets: Floats) -> None:
        """Adds rows: inputs (rows, groups, inputs) and targets (rows, groups, targets)."""
        for start in range(0, len(inputs), _ROWS):
            part = slice(start, start + _ROWS)
            x = np.ascontiguousarray(inputs[part].transpose(1, 0, 2))
            y = np.ascontiguousarray(targets[part].transpose(1, 0, 2))
            if self._shift is None:
                self._shift = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
            x -= self._shift[0]
            y -= self._shift[1]
            across = x.transpose(0, 2, 1)
            for group in range(len(x)):
                # One product with its own transpose: BLAS computes half of it.
                self._gram[group] += across[group] @ x[group]
            self._cross += across @ y
            self._squares += np.square(y).sum(1)
            self._inputs += x.sum(1, keepdims=True)
            self._targets += y.sum(1, keepdims=True)
            self.count += x.shape[1]

    def solve(self, ridge: float) -> tuple[Floats, Floats]:
        """The regression of the targets on the inputs.

        Args:
            ridge: added to the diagonal of the Gram matrix, in units of its mean diagonal.

        Returns:
            The coefficients, shape (groups, inputs, targets), and the intercepts, shape (groups,
            targets), both float64: those of least mean square error, plus `ridge` times the mean
            square of an input times the square of the coefficients.
        """
        gram, cross = self._centered()
        coefficients = np.stack(
            [_solved(one, other, ridge) for one, other in zip(gram, cross, strict=True)]
        )
        means, targets = self._means()
        return coefficients, (targets - means @ coefficients)[:, 0]

    def mean_squares(self) -> Floats:
        """The mean square of each target, mean included, shape (groups, targets)."""
        assert self._shift is not None
        shift, mean = self._shift[1][:, 0], self._targets[:, 0] / self.count
        squares: Floats = self._squares / self.count + 2 * shift * mean + np.square(shift)
        return np.maximum(squares, 0)

    def _centered(self) -> tuple[Floats, Floats]:
        x, y = self._inputs / self.count, self._targets / self.count
        across = x.transpose(0, 2, 1)
        return self._gram / self.count - across @ x, self._cross / self.count - across @ y

    def _means(self) -> tuple[Floats, Floats]:
        assert self._shift is not None
        return self._shift[0] + self._inputs / self.count, self._shift[1] + self._targets / self.count


def _solved(gram: Floats, cross: Floats, ridge: float) -> Floats:
    """Coefficients of one system; the smallest ones where they are not determined."""
    size = len(gram)
    scale = np.trace(gram) / max(size, 1)
    if not scale > 0:
        return np.zeros_like(cross)
    if ridge > 0:
        try:
            factor = scipy.linalg.cho_factor(gram + ridge * scale * np.eye(size), lower=True)
            solution: Floats = scipy.linalg.cho_solve(factor, cross)
            if np.isfinite(solution).all():
                return solution
        except scipy.linalg.LinAlgError:
            pass  # the ridge is too small for what rounding left
    values, vectors = np.linalg.eigh(gram)
    # Sums of float32 products know the Gram matrix no better.
    known = values > size * np.finfo(np.float32).eps * values[-1]
    weights = np.where(known, 1 / np.where(known, values + ridge * scale, 1), 0)
    return (vectors * weights) @ (vectors.T @ cross)
