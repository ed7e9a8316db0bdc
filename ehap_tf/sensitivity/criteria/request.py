"""What a criterion gets, and what it returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import tf_keras

from ehap_tf.progress import ProgressCallback, no_progress
from ehap_tf.sensitivity.batches import HessianBatch
from ehap_tf.sensitivity.devices import Replicas
from ehap_tf.sensitivity.filters import PrunableLayer, find_prunable
from ehap_tf.sensitivity.statistics import Floats


@dataclasses.dataclass(frozen=True)
class Request:
    """What the caller asked for, checked.

    Attributes:
        model: the caller's; not to be changed.
        data: the Hessian batch; None where the criterion looks at no data.
        loss: as the caller gave it.
        estimator: "hutchinson", "gauss_newton" or "exact".
        precision: "fp32", "fp16" or "bf16".
        probes: the budget.
        tolerance: early stop, or None.
        seed: of everything random.
        replicas: where to run.
        progress: to be called as work proceeds.
        residual: "tied" asks for the effect of removing at once what a sum lines up.
        options: further arguments of the criterion.
    """

    model: tf_keras.Model
    data: HessianBatch | None = None
    loss: Any = None
    estimator: str = "hutchinson"
    precision: str = "fp32"
    probes: int = 0
    tolerance: float | None = None
    seed: int = 0
    replicas: Replicas = dataclasses.field(default_factory=Replicas)
    progress: ProgressCallback = no_progress
    residual: str = "union"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
