"""The scale of the BatchNorm behind a filter (network slimming, arXiv 1708.06519)."""

from __future__ import annotations

import numpy as np

from ehap_tf.sensitivity.criteria.request import Request, Result
from ehap_tf.sensitivity.gates.gate_placement import find_gates


def batch_norm_scale(request: Request) -> Result:
    """|gamma| of the BatchNorm that follows the layer.

    Layers without one (the classifier above all) cannot be compared with the others. Their
    filters get the largest score there is, and a note says so. They are removed last in union mode
    without `cost_aware`: "tied" sums scores, `cost_aware` divides them.

    Raises:
        ValueError: no layer has a BatchNorm with a scale.
    """
    values: list[np.ndarray] = []
    missing: list[str] = []
    gates = find_gates(request.model)
    for layer in request.layers:
        batch_norm = gates[layer.name].batch_norm if layer.name in gates else None
        if batch_norm is None or not batch_norm.scale:
            missing.append(layer.name)
            values.append(np.full(layer.filters, np.nan))
        else:
            values.append(np.abs(np.asarray(batch_norm.gamma, np.float64)))
    scores = np.concatenate(values)
    if np.isnan(scores).all():
        raise ValueError(
            "criterion 'bn_scale' needs layers that are followed by a BatchNormalization with a "
            f"scale. Received: a model where none of {missing} is; use 'magnitude'"
        )
    scores = np.where(np.isnan(scores), np.nanmax(scores), scores)
    notes = (f"no BatchNorm scale, scored highest: {', '.join(missing)}",) if missing else ()
    return Result(scores, quantity="absolute BatchNorm scale", notes=notes)
