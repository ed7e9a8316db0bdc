"""Ranking: what each filter of a trained network is worth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.criteria import find_criterion
from ehap_tf.models import require_rankable
from ehap_tf.models.keras3 import either_keras
from ehap_tf.models.precision import resolve_precision
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.sensitivity.criteria import Request, Result
from ehap_tf.sensitivity.criteria.request import RankOptions
from ehap_tf.sensitivity.network.filters import PrunableLayer, split_filters
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.running.memory import PeakMemory
from ehap_tf.sensitivity.running.replicas import Replicas
from ehap_tf.sensitivity.scores import FilterScores, Provenance
from ehap_tf.sensitivity.statistics import Floats
from ehap_tf.sensitivity.supervised import supervised_part

_FURTHER = ("trace", "standard_error", "trace_standard_error", "signed")
"""What a `Result` can have for each filter besides the scores."""


@either_keras()
def rank_filters(
    model: tf_keras.Model,
    data: Any = None,
    loss: Any = None,
    criterion: str = "hessian_trace",
    estimator: str = "hutchinson",
    precision: str = "fp32",
    probes: int = 300,
    tolerance: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    progress: ProgressCallback = no_progress,
    residual: str = "union",
) -> FilterScores:
    """Scores every filter of every convolution and Dense layer of a trained model.

    Neither the model, its compile state, the global precision policy nor the global seed change.

    Args:
        model: Functional or Sequential.
        data: `(x, y)` or `(x, y, sample_weight)` arrays or a finite batched `tf.data.Dataset`;
            None for criteria that look at no data. Labels are as `fit` takes them: an array, or
            for one output or several a dict by name or a list. The loss is the mean over all of it.
        loss: a Keras loss, its name, or None for the model's compiled loss.
        criterion: what is scored; `ehap_tf.sensitivity.criterion_names()` lists them.
        estimator: of curvature: "hutchinson" (nested tapes, the paper's), "gauss_newton" (a
            sketch; cheaper, far less noise) or "exact" (small data).
        precision: that the network runs in: "fp32", "fp16", "bf16", or "auto" for what is fastest
            here.
        probes: number of random vectors, the budget when `tolerance` is given; "exact" needs
            neither.
        tolerance: stop as soon as the expected share of filters on the wrong side of a pruning
            threshold is below this number, in (0, 1). Criteria that sample and whose scores are
            not linear in what is sampled refuse it: all but "hessian_trace", "obd", "quadratic".
        batch_size: examples differentiated at once: bounds the memory, changes no score beyond
            rounding.
        seed: of the random vectors.
        strategy: spreads the work over its replicas; scores stay the same to rounding.
        progress: called as `progress(probes done, probes, figures)`.
        residual: "tied" where filters that a sum lines up are to be removed together, as in
            `plan_pruning`: criteria on gates ("obd", "obd_joint", "obd_joint_centered",
            "obs_joint", "quadratic", "taylor_fo", "taylor_so", "oracle") then score the removal of
            the whole group at once, with the cross terms between its filters, and each filter has
            its share.
            Other criteria are the same in both modes; the plan adds their scores up.

    Returns:
        The scores by layer name, with their errors and provenance.

    Raises:
        TypeError: the model is subclassed; a criterion of one's own returns something else than its
            scores.
        ValueError: an argument is out of range; a criterion of one's own gives another number of
            scores than there are filters; the data are empty, infinite, shuffled, do not fit
            the model or the loss, or have labels out of range; the model is a quantization-aware
            one; the weights, outputs or loss are not finite.
        FloatingPointError: curvature overflows in the chosen precision.
    """
    options = RankOptions(
        criterion=criterion, estimator=estimator, precision=precision, probes=probes,
        tolerance=tolerance, batch_size=batch_size, seed=seed, strategy=strategy,
        progress=progress, residual=residual,
    )  # fmt: skip
    return rank_with_options(model, data, loss, options)


def rank_with_options(
    model: tf_keras.Model, data: Any, loss: Any, options: RankOptions
) -> FilterScores:
    """`rank_filters` with further arguments for the criterion."""
    start, memory = time.perf_counter(), PeakMemory()
    criterion, name = find_criterion(options.criterion), options.criterion
    if criterion.needs_data:
        require_rankable(model)
        model, data, loss = supervised_part(model, data, loss)
    asked = vars(options) | {"precision": _precision_for(options.estimator, options.precision)}
    request = Request(**asked, model=model, loss=loss, replicas=Replicas(options.strategy))
    require_rankable(model)
    if criterion.needs_data:
        batch = HessianBatch(data, options.batch_size)
        batch.require_fit(model, loss)
        request = dataclasses.replace(request, data=batch)
    layers = request.layers
    result = _as_result(criterion.score(request), layers, name)
    if not np.isfinite(result.scores).all():
        raise ValueError(f"criterion {name!r} gave scores that are NaN or infinite")
    provenance = Provenance(
        criterion=name,
        estimator=result.estimator,
        precision=result.precision or "fp32",
        probes=result.probes,
        seed=int(options.seed),
        seconds=time.perf_counter() - start,
        peak_bytes=memory.bytes(),
        examples=request.data.examples if request.data else 0,
        quantity=result.quantity,
        notes=result.notes,
        residual=options.residual if criterion.grouped else "union",
    )
    pieces = {
        kind: split_filters(values, layers)
        for kind in _FURTHER
        if (values := getattr(result, kind)) is not None
    }
    return FilterScores(split_filters(result.scores, layers), provenance, **pieces)


def _precision_for(estimator: str, precision: str) -> str:
    resolved = resolve_precision(precision)
    if estimator != "exact":
        return resolved
    if precision not in ("fp32", "auto"):
        raise ValueError(
            "precision must be 'fp32' or 'auto' with estimator 'exact': rounding in 16 bits would "
            f"not be exact. Received: {precision!r}"
        )
    return "fp32"


def _as_result(result: Any, layers: list[PrunableLayer], criterion: str) -> Result:
    """What a criterion returned, each of its vectors checked."""
    must = f"criterion {criterion!r} must"
    if isinstance(result, Result):
        filters = sum(layer.filters for layer in layers)
        vectors = {"scores": result.scores}
        vectors |= {name: v for name in _FURTHER if (v := getattr(result, name)) is not None}
        checked: dict[str, Any] = {
            name: _vector(values, filters, f"{must} give {filters} numbers as {name}")
            for name, values in vectors.items()
        }
        return dataclasses.replace(result, **checked)
    if not isinstance(result, Mapping):
        raise TypeError(
            f"{must} return a Result, or a mapping from layer name to one score per filter. "
            f"Received: {type(result).__name__}"
        )
    scores = []
    for layer in layers:
        demand = f"{must} give {layer.filters} scores for layer {layer.name!r}"
        scores.append(_vector(result.get(layer.name, ()), layer.filters, demand))
    return Result(np.concatenate(scores))


def _vector(values: Any, length: int, demand: str) -> Floats:
    try:
        vector = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{demand}. Received: {type(values).__name__} of no numbers") from None
    if vector.shape != (length,):
        raise ValueError(f"{demand}. Received: shape {vector.shape}")
    return vector
