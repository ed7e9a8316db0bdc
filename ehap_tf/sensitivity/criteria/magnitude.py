"""The size of a filter's weights."""

from __future__ import annotations

import numpy as np

from ehap_tf.sensitivity.criteria.request import Request, Result


def mean_square(request: Request) -> Result:
    """|w_c|_2^2 / n_c: comparable between layers of different filter size."""
    values = [
        np.square(layer.kernel).reshape(-1, layer.filters).mean(axis=0) for layer in request.layers
    ]
    return Result(np.concatenate(values), quantity="mean square of a filter's weights")


def mean_absolute(request: Request) -> Result:
    """|w_c|_1 / n_c (Li et al., arXiv 1608.08710, divided by the filter's size)."""
    values = [
        np.abs(layer.kernel).reshape(-1, layer.filters).mean(axis=0) for layer in request.layers
    ]
    return Result(np.concatenate(values), quantity="mean absolute value of a filter's weights")
