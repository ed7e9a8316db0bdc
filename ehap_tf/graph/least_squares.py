"""Linear regression from sums of products, for systems that may be singular."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Floats = npt.NDArray[Any]


class Sums:
    """What the solution of a regression needs to know of its rows, added up part by part.

    There are `groups` independent systems of the same size; a Dense layer or a plain convolution is
    one, a depthwise convolution has one for each channel. Inputs and targets are centered: products
    are taken of what is left after the means of the first rows are subtracted, which keeps float32
    accurate, and the rest of the means is taken out at the end.

    Args:
        groups: how many systems.
        inputs: of each.
        targets: of each.
        intercept: False makes it a regression without one; nothing is centered then.
    """

    ROWS: ClassVar[int] = 8_192
    """Products of so many rows are taken in float32, and added up in float64."""

    def __init__(self, groups: int, inputs: int, targets: int, intercept: bool = True) -> None:
        self.count = 0
        self._intercept = intercept
        self._gram = np.zeros((groups, inputs, inputs))
        self._cross = np.zeros((groups, inputs, targets))
        self._squares = np.zeros((groups, targets))
        self._inputs = np.zeros((groups, 1, inputs))
        self._targets = np.zeros((groups, 1, targets))
        self._shift: tuple[Any, ...] | None = None
        self._solvers: list[Callable[[Floats], Floats]] | None = None

    def add(self, inputs: Any, targets: Any) -> tf.Tensor:
        """Adds rows, at most about `ROWS`.

        Args:
            inputs: shape (groups, rows, inputs).
            targets: shape (groups, rows, targets).

        Returns:
            The inputs less `origin`, for `replace_targets`.
        """
        if self._shift is None:
            means = (tf.reduce_mean(t, 1, keepdims=True) for t in (inputs, targets))
            self._shift = tuple(mean * float(self._intercept) for mean in means)
        x = inputs - self._shift[0]
        self._gram += tf.matmul(x, x, transpose_a=True).numpy()
        if self._intercept:
            self._inputs += tf.reduce_sum(x, 1, keepdims=True).numpy()
        self.count += x.shape[1]
        self._add_targets(x, targets)
        return x

    def replace_targets(self, rows: Iterable[tuple[tf.Tensor, Any]]) -> None:
        """Other targets for the rows that were added: what `add` returned, and the targets."""
        for total in (self._cross, self._squares, self._targets):
            total[:] = 0
        for x, targets in rows:
            self._add_targets(x, targets)

    @property
    def origin(self) -> Floats:
        """About the mean of the inputs, shape (groups, 1, inputs)."""
        assert self._shift is not None
        return np.asarray(self._shift[0], np.float64)

    def _add_targets(self, x: tf.Tensor, targets: Any) -> None:
        assert self._shift is not None
        y = targets - self._shift[1]
        self._cross += tf.matmul(x, y, transpose_a=True).numpy()
        self._squares += tf.reduce_sum(tf.square(y), 1).numpy()
        if self._intercept:
            self._targets += tf.reduce_sum(y, 1, keepdims=True).numpy()

    def solve(self, ridge: float) -> tuple[Floats, Floats]:
        """The regression of the targets on the inputs.

        Args:
            ridge: added to the diagonal of the Gram matrix, in units of its mean diagonal.

        Returns:
            The coefficients, shape (groups, inputs, targets), and the intercepts, shape (groups,
            targets), both float64: those of least mean square error, plus `ridge` times the mean
            square of an input times the square of the coefficients.
        """
        cross = self._centered_cross
        if self._solvers is None:
            self._solvers = [_solver(one, ridge) for one in self.gram]
        coefficients = np.stack(
            [solver(one) for solver, one in zip(self._solvers, cross, strict=True)]
        )
        means, targets = self._means()
        return coefficients, (targets - means @ coefficients)[:, 0]

    def mean_square_left(self, coefficients: Floats) -> float:
        """What the regression leaves of the targets: mean square, over all of them.

        Args:
            coefficients: as `solve` returns them; the intercepts are right for them.
        """
        gram, cross = self.gram, self._centered_cross
        whole = self._squares / self.count - np.square(self._targets[:, 0] / self.count)
        explained = (coefficients * (2 * cross - gram @ coefficients)).sum(1)
        return float(np.maximum(whole - explained, 0).mean())

    @property
    def gram(self) -> Floats:
        """The mean products of (centered) inputs, shape (groups, inputs, inputs)."""
        x = self._inputs / self.count
        return self._gram / self.count - x.transpose(0, 2, 1) @ x

    @property
    def _centered_cross(self) -> Floats:
        x, y = self._inputs / self.count, self._targets / self.count
        return self._cross / self.count - x.transpose(0, 2, 1) @ y

    def _means(self) -> tuple[Floats, Floats]:
        assert self._shift is not None
        x, y = (np.asarray(shift, np.float64) for shift in self._shift)
        return x + self._inputs / self.count, y + self._targets / self.count


def with_ridge(gram: Floats, ridge: float) -> Floats:
    """Gram matrices (..., inputs, inputs) with `ridge` times their mean diagonal on the diagonal.

    Of one that is all zeros the mean diagonal counts as 1.
    """
    size = gram.shape[-1]
    scale = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / max(size, 1)
    return gram + ridge * np.where(scale > 0, scale, 1.0) * np.eye(size)


def _solver(gram: Floats, ridge: float) -> Callable[[Floats], Floats]:
    """Coefficients of one system from its products; the smallest where they are not determined."""
    size = len(gram)
    scale = np.trace(gram) / max(size, 1)
    if not scale > 0:
        return np.zeros_like
    if ridge > 0:
        try:
            factor = tf.linalg.cholesky(with_ridge(gram, ridge))
            if np.isfinite(factor.numpy()).all():
                return lambda cross: tf.linalg.cholesky_solve(factor, cross).numpy()
        except tf.errors.InvalidArgumentError:
            pass  # the ridge is too small for what rounding left
    values, vectors = np.linalg.eigh(gram)
    # Sums of float32 products know the Gram matrix no better.
    known = values > size * np.finfo(np.float32).eps * values[-1]
    weights = np.where(known, 1 / np.where(known, values + ridge * scale, 1), 0)
    return lambda cross: (vectors * weights) @ (vectors.T @ cross)
