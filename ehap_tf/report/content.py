"""The value that a report is made from: plain numbers, no model and no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One prunable layer.

    Attributes:
        name: the layer's name.
        scores: shape (filters,), what each filter is worth.
        standard_error: shape (filters,), of the scores; None where they are not sampled.
        kept: indices of the filters that stayed whole; None before pruning.
        implanted: indices of those that became 1x1.
    """

    name: str
    scores: np.ndarray
    standard_error: np.ndarray | None = None
    kept: tuple[int, ...] | None = None
    implanted: tuple[int, ...] = ()

    @property
    def filters(self) -> int:
        """Number of filters before pruning."""
        return len(self.scores)


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """Everything that the page of a run shows; what did not happen is empty.

    Attributes:
        title: name of the run.
        figures: the content of report.json.
        layers: in model order.
        threshold: score at or below which a filter was removed; None where there is none.
        histories: by stage, one mapping of figures an epoch.
        operators: by operator, how many of them the integer file has.
        file_bytes: size by file name.
        command: the command line.
        settings: every setting of the run.
        environment: versions and hardware, by name.
        notes: by stage, sentences that a reader should know.
        details: further figures that stages measured, by name; report.json does not have them.
    """

    title: str
    figures: Mapping[str, Any]
    layers: Sequence[LayerReport] = ()
    threshold: float | None = None
    histories: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    operators: Mapping[str, int] = dataclasses.field(default_factory=dict)
    file_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    command: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
