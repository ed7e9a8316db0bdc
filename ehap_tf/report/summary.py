"""The table of a run: accuracy, size and cost through the stages."""

from __future__ import annotations

import dataclasses

import rich.table

from ehap_tf.report.content import ReportContent
from ehap_tf.report.tables import cell, terminal_table


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One state of the network. A value is None where it was not measured.

    Attributes:
        name: what the network is at this point.
        accuracy: on the whole test set, 0 to 1.
        params: number of parameters.
        macs: multiply-accumulates of one image.
        file: name of the file; "" where none is written.
        bytes: its size.
        latency_ms: milliseconds an image as TFLite on one thread of this machine.
    """

    name: str
    accuracy: float | None
    params: int | None
    macs: int | None
    file: str
    bytes: int | None
    latency_ms: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as text; a dash where nothing was measured."""
        return (
            self.name,
            cell(self.accuracy, "accuracy"),
            cell(self.params, "count"),
            cell(self.macs, "macs"),
            cell(self.bytes, "count"),
            cell(self.latency_ms, "latency"),
        )


HEADINGS = ("network", "test accuracy", "parameters", "MACs", "file bytes", "latency")

_STATES = (
    ("baseline", "baseline_accuracy", "before", "baseline.keras", "baseline_latency_ms"),
    ("pruned, not yet recalibrated", "accuracy_before_recalibration", "after", "", ""),
    ("pruned, not yet repaired", "accuracy_before_repair", "after", "", ""),
    ("pruned", "pruned_accuracy", "after", "slim.keras", "slim_latency_ms"),
    ("fine-tuned", "finetuned_accuracy", "after", "finetuned.keras", "slim_latency_ms"),
    ("QAT", "qat_accuracy", "after", "qat.h5", ""),
    ("INT8 TFLite", "tflite_accuracy", "after", "model_int8.tflite", "tflite_latency_ms"),
)


def summary_rows(content: ReportContent) -> list[SummaryRow]:
    """One row for each state of the network that was measured, in the order of the stages."""
    figures = {**content.details, **content.figures}
    return [
        SummaryRow(
            name,
            figures[accuracy],
            figures.get(f"params_{side}"),
            figures.get(f"macs_{side}"),
            file,
            content.file_bytes.get(file),
            figures.get(latency),
        )
        for name, accuracy, side, file, latency in _STATES
        if accuracy in figures
    ]


def summary_table(content: ReportContent) -> rich.table.Table:
    """The summary as a table for the terminal."""
    return terminal_table(content.title, HEADINGS, [row.cells() for row in summary_rows(content)])
