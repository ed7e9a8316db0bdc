"""Scores without meaning: the baseline that every criterion has to beat."""

from __future__ import annotations

import numpy as np

from ehap_tf.sensitivity.criteria.request import Request, Result


def random_scores(request: Request) -> Result:
    """Uniform in [0, 1), from the seed alone."""
    filters = sum(layer.filters for layer in request.layers)
    return Result(np.random.default_rng(request.seed).random(filters), quantity="uniform random")
