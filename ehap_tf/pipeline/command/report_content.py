"""Reads a run directory into the value that a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehap_tf import files
from ehap_tf.pipeline.command.run_directory import RunDirectory
from ehap_tf.pipeline.command.stage_records import StageRecord, read_records
from ehap_tf.pruning import PruningPlan
from ehap_tf.report import LayerReport, ReportContent
from ehap_tf.report.environment import environment
from ehap_tf.sensitivity import FilterScores

REPORT_KEYS = (
    "model",
    "dataset",
    "criterion",
    "estimator",
    "precision",
    "probes",
    "seed",
    "rank_seconds",
    "rank_peak_bytes",
    "params_before",
    "params_after",
    "macs_before",
    "macs_after",
    "baseline_accuracy",
    "pruned_accuracy",
    "finetuned_accuracy",
    "qat_accuracy",
    "tflite_accuracy",
    "tflite_bytes",
    "tflite_float_ops",
    "tflite_latency_ms",
    "baseline_latency_ms",
    "stage_seconds",
)
"""The keys of report.json, which outside scripts read; absent only where a stage did not run."""

OPTIONAL_KEYS = (
    "prune_steps",
    "prune_shortfall",
    "removed_blocks",
    "accuracy_before_repair",
    "accuracy_before_recalibration",
    "tflite_arena_bytes",
    "baseline_tflite_bytes",
    "baseline_tflite_arena_bytes",
    "baseline_int8_accuracy",
    "baseline_int8_latency_ms",
    "baseline_int8_tflite_bytes",
    "baseline_int8_tflite_arena_bytes",
    "slim_latency_ms",
    "slim_tflite_bytes",
    "slim_tflite_arena_bytes",
    "micro_arena_bytes",
    "micro_examples",
    "micro_equal",
    "micro_agreement",
    "ethos_u",
    "ethos_u_cycles",
    "ethos_u_ms",
    "ethos_u_sram_bytes",
    "ethos_u_cpu_operators",
    "image_shape",
    "normalization",
    "preprocessing",
)
"""Keys of report.json beside them: the other files of the last table, and what only some settings
bring about."""


def report_figures(
    settings: Mapping[str, Any], records: Mapping[str, StageRecord]
) -> dict[str, Any]:
    """The content of report.json, from the settings and the finished stages."""
    measured = {name: settings[name] for name in ("model", "dataset", "seed")}
    for record in records.values():
        measured |= record.figures
    measured["stage_seconds"] = {stage: record.seconds for stage, record in records.items()}
    return {name: measured[name] for name in (*REPORT_KEYS, *OPTIONAL_KEYS) if name in measured}


def run_content(
    run: RunDirectory, records: Mapping[str, StageRecord] | None = None
) -> ReportContent:
    """What the run directory holds, for the page and the table.

    Args:
        run: a run directory; one that holds nothing but report.json will do.
        records: the stages to report on; None takes what the directory has recorded, and the
            figures of its report.json.

    Raises:
        CorruptFileError: a file cannot be read back.
        ValueError: there is nothing to report.
    """
    config = run.read_json(run.config)
    settings = config.get("settings", {})
    if records is None:
        records = read_records(run)
        figures = run.read_json(run.report) or (
            report_figures(settings, records) if records else {}
        )
    else:
        figures = report_figures(settings, records)
    if not figures:
        raise ValueError(f"{run.path} holds no report.json and no finished stage")
    layers, threshold = _layers(run, records)
    export = records.get("export")
    return ReportContent(
        title=f"{figures.get('model', '?')} on {figures.get('dataset', '?')} ({run.path.name})",
        figures=figures,
        layers=layers,
        threshold=threshold,
        histories={
            stage: run.read_json(run.history(stage)).get("epochs", [])
            for stage in ("train", "finetune", "quantize")
            if stage in records and run.history(stage).exists()
        },
        operators=export.figures.get("tflite_operators", {}) if export else {},
        file_bytes={path.name: path.stat().st_size for path in run.models() if path.exists()},
        command=config.get("command", ""),
        settings=settings,
        environment=config.get("environment") or environment(),
        notes=_notes(records),
        details={
            name: value
            for record in records.values()
            for name, value in record.figures.items()
            if name not in REPORT_KEYS
        },
    )


def _layers(
    run: RunDirectory, records: Mapping[str, StageRecord]
) -> tuple[list[LayerReport], float | None]:
    if "rank" not in records or not run.scores.exists():
        return [], None
    scores = FilterScores.load(run.scores)
    plan = None
    if "prune" in records and run.plan.exists():
        try:
            plan = PruningPlan.from_json(run.plan.read_text(encoding="utf-8"))
        except ValueError as error:
            raise files.CorruptFileError(f"{run.plan} cannot be read: {error}") from error
    layers, removed = [], []
    for name in scores:
        kept = implanted = None
        if plan is not None and name in plan.kept:
            kept = tuple(int(i) for i in plan.kept[name])
            implanted = tuple(int(i) for i in plan.implanted.get(name, ()))
            gone = set(range(len(scores[name]))) - set(kept)
            removed += [float(scores[name][i]) for i in gone]
        spread = scores.standard_error.get(name) if scores.standard_error else None
        layers.append(LayerReport(name, scores[name], spread, kept, implanted or ()))
    if "prune" in records and "prune_steps" in records["prune"].figures:
        # Later steps went by scores of their own.
        return layers, None
    # The highest score that went: the threshold itself, unless groups or limits moved it.
    return layers, max(removed, default=None)


def _notes(records: Mapping[str, StageRecord]) -> dict[str, str]:
    notes = {}
    for stage, record in records.items():
        if record.figures.get("quantity"):
            notes[stage] = "; ".join([record.figures["quantity"], *record.figures["notes"]])
        elif "prune_shortfall" in record.figures:
            notes[stage] = f"{record.figures['prune_shortfall']}."
        elif "source" in record.figures:
            notes[stage] = f"not trained here; the model is {record.figures['source']}."
        elif "best_epoch" in record.figures:
            epochs, best = record.figures["epochs"], record.figures["best_epoch"]
            kept = f"weights of epoch {best}, the best on the validation images."
            if epochs and not best:
                kept = "none of them better on the validation images than the weights before."
            notes[stage] = f"{epochs} epochs, {kept}"
    return notes
