"""What a criterion gets, and what it returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import RESIDUAL_MODES
from ehap_tf.criteria import check_tolerance
from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.sensitivity.estimators.estimation import ESTIMATOR_NAMES
from ehap_tf.sensitivity.network.filters import PrunableLayer, find_prunable
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch
from ehap_tf.sensitivity.running.replicas import Replicas
from ehap_tf.sensitivity.statistics import Floats


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankOptions:
    """What `rank_filters` takes besides a model, data and a loss.

    Attributes:
        criterion: by name.
        estimator: "hutchinson", "gauss_newton" or "exact".
        precision: "fp32", "fp16" or "bf16"; "auto" is one of these in a `Request`.
        probes: the budget.
        tolerance: early stop, or None.
        batch_size: examples differentiated at once.
        seed: of everything random.
        strategy: over whose replicas the work is spread.
        progress: to be called as work proceeds.
        residual: "tied" asks for the effect of removing at once what a sum lines up.
        options: further arguments of the criterion.

    Raises:
        ValueError: one is out of range.
    """

    criterion: str = "hessian_trace"
    estimator: str = "hutchinson"
    precision: str = "fp32"
    probes: int = 300
    tolerance: float | None = None
    batch_size: int | None = None
    seed: int = 0
    strategy: tf.distribute.Strategy | None = None
    progress: ProgressCallback = no_progress
    residual: str = "union"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("estimator", self.estimator, ESTIMATOR_NAMES)
        _check_choice("residual", self.residual, RESIDUAL_MODES)
        _check_numbers(self.probes, self.tolerance, self.seed)
        check_tolerance(self.criterion, self.tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(RankOptions):
    """What the caller asked for, checked.

    Attributes:
        model: the caller's; not to be changed.
        data: the Hessian batch; None where the criterion looks at no data.
        loss: as the caller gave it.
        replicas: where to run.
    """

    model: tf_keras.Model
    data: HessianBatch | None = None
    loss: Any = None
    replicas: Replicas = dataclasses.field(default_factory=Replicas)

    @functools.cached_property
    def layers(self) -> list[PrunableLayer]:
        """The layers to score, in model order."""
        return find_prunable(self.model)

    @property
    def batch(self) -> HessianBatch:
        """The data of a criterion that needs some."""
        if self.data is None:
            raise ValueError("data must be given for this criterion. Received: None")
        return self.data


@dataclasses.dataclass(frozen=True)
class Result:
    """What a criterion returns: flat vectors over all filters of all layers, in model order.

    Attributes:
        scores: higher is worth more.
        trace: curvature traces, where the criterion has them.
        standard_error: of the scores, where they are linear in what is sampled.
        trace_standard_error: of the traces.
        signed: predicted or measured change of the loss on removal, where the criterion has one.
        estimator: what was used; None where there is none.
        precision: what the network ran in; None where it did not run.
        probes: random vectors used.
        quantity: what was estimated.
        notes: what a reader should know.
    """

    scores: Floats
    trace: Floats | None = None
    standard_error: Floats | None = None
    trace_standard_error: Floats | None = None
    signed: Floats | None = None
    estimator: str | None = None
    precision: str | None = None
    probes: int = 0
    quantity: str = ""
    notes: tuple[str, ...] = ()


def _check_choice(argument: str, value: Any, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{argument} must be one of {', '.join(valid)}. Received: {value!r}")


def _check_numbers(probes: int, tolerance: float | None, seed: int) -> None:
    if isinstance(probes, bool) or not isinstance(probes, (int, np.integer)) or probes < 1:
        raise ValueError(f"probes must be an integer of at least 1. Received: {probes!r}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1) or None. Received: {tolerance!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0. Received: {seed!r}")
