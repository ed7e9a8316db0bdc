"""Kernels rounded for what the layers compute of data, instead of each weight for itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from ehap_tf.graph import (
    Kernel,
    Sums,
    by_group,
    in_parts,
    kernel_of,
    products,
    some_positions,
    with_ridge,
)
from ehap_tf.quantization.apply.column_rounding import (
    rounded_matrix,
    rounded_to_nearest,
    squared_error,
)
from ehap_tf.quantization.apply.side_by_side import SideBySide, Sides
from ehap_tf.quantization.plan.quantizers import largest_integer

POSITIONS = 40_000
"""Of a layer's output that are looked at, over all examples, drawn at random."""
LARGEST_SYSTEM = 8_192
"""Inputs of a filter: their Gram matrix takes half a gigabyte."""
RIDGE = 0.01
"""On a change of the kernel, in units of the mean square of an input: GPTQ's damping."""


class KernelRounding:
    """Gives each layer the kernel on the file's grid whose outputs are nearest to those in float.

    X are the unfolded inputs in integers, behind layers that are rounded already, Y the outputs in
    float of the float network's inputs, W the kernel. The least squares solution W* for Y, with a
    ridge that keeps it near W, is rounded by GPTQ (see `rounded_matrix`). As
    |Y - X Q|^2 + r |Q - W|^2 is, but for a constant, tr (Q - W*)^T H (Q - W*) with
    H = X^T X + r I, what is kept small is the error of the outputs against the float network's.

    The weights are multiples of their steps then, which the rounding to nearest that the model and
    its file do leaves as they are.

    Args:
        intercept: the mean error of each channel is taken out afterwards, where there is a bias or
            a BatchNorm to take it from: X and Y are centered.
        seed: of the positions that are looked at.

    Attributes:
        errors: for each layer the objective with its kernel rounded to nearest, and as it is now.
        skipped: the layers whose filters have too many inputs, which are rounded to nearest.
    """

    def __init__(self, intercept: bool, seed: int = 0) -> None:
        self._intercept = intercept
        self._seed = seed
        self.errors: dict[str, tuple[float, float]] = {}
        self.skipped: list[str] = []

    def __call__(self, both: SideBySide, layer: Any, x: Sides) -> None:
        """Rounds the kernel of a convolution or Dense."""
        kernel = kernel_of(layer.layer)
        variable, quantizer, _ = layer._weight_vars[0]
        if kernel is None or kernel.matrix(variable.numpy()).shape[1] > LARGEST_SYSTEM:
            self.skipped.append(layer.name)
            return
        matrix = kernel.matrix(variable.numpy())
        takes_mean = layer.layer.use_bias or both.rounded.batch_norm_of(layer.name) is not None
        groups, inputs, targets = matrix.shape
        sums = Sums(groups, inputs, targets, intercept=self._intercept and takes_mean)
        self._add(sums, kernel, matrix, x)
        wanted = matrix + sums.solve(RIDGE)[0]
        grams = with_ridge(sums.gram, RIDGE)
        levels = largest_integer(quantizer.bits)
        systems = list(zip(matrix.astype(np.float64), wanted, grams, strict=True))
        rounded = np.stack([rounded_matrix(*system, levels) for system in systems])
        self.errors[layer.name] = (
            sum(_error(rounded_to_nearest(w, levels), wish, h) for w, wish, h in systems),
            sum(_error(q, wish, h) for q, (_, wish, h) in zip(rounded, systems, strict=True)),
        )
        variable.assign(kernel.from_matrix(rounded).astype(np.float32))
        both.rounded.fold_again(layer)

    def _add(self, sums: Sums, kernel: Kernel, matrix: np.ndarray, x: Sides) -> None:
        """Adds the unfolded inputs in integers, and what their products lack."""
        of_example = int(np.prod(kernel.output_positions(x.rounded[0].shape)))
        examples = sum(len(part) for part in x.rounded)
        rng = np.random.default_rng([self._seed, len(self.errors)])
        chosen = some_positions(of_example * examples, POSITIONS, rng)
        start = 0
        for exact, rounded in zip(x.exact, x.rounded, strict=True):
            stop = start + of_example * len(rounded)
            mine = chosen[slice(*np.searchsorted(chosen, [start, stop]))] - start
            start = stop
            for positions in in_parts(mine, 4 * matrix[..., 0].size):
                unfolded = kernel.unfolded(rounded, positions)
                lost = products(kernel.unfolded(exact, positions) - unfolded, matrix)
                sums.add(unfolded, by_group(lost, len(matrix)))


def _error(matrix: np.ndarray, wanted: np.ndarray, gram: np.ndarray) -> float:
    return float(squared_error(matrix - wanted, gram).sum())
