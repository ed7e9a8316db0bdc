"""Stage `export`: the integer file, and what it does on the whole test set."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from ehap_tf.data import evaluation_batches
from ehap_tf.models import load_model
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Figures, Job, Stage
from ehap_tf.pipeline.command.stages.quantize import file_settings
from ehap_tf.quantization import (
    Normalization,
    evaluate_tflite,
    export_float_tflite,
    export_tflite,
    load_qat,
    measure_latency_ms,
    quantization_report,
)
from ehap_tf.quantization.tflite.export import CHECKED_EXAMPLES

COMPARED_BATCHES, COMPARED_BATCH_SIZE = 4, 32
"""Validation images on which the error of each layer is measured."""
TEST_BATCH_SIZE = 128
"""Of the test images: the file is compared with the QAT model on the first ones, scored on all."""


def settings(config: PipelineConfig) -> dict[str, Any]:
    """The data that the file is measured on; everything else is in qat.h5."""
    return file_settings(config)


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `model_int8.tflite` and its metadata."""
    del fingerprint
    job.console.say("export: converting to full-integer TFLite")
    qat, slim = load_qat(job.run.qat), load_model(job.run.finetuned)
    dataset = job.dataset
    test = evaluation_batches(dataset.test, dataset, TEST_BATCH_SIZE)
    exported = export_tflite(
        qat,
        job.run.tflite,
        allow_float=job.config.allow_float,
        normalization=Normalization(dataset.mean, dataset.std),
        labels=dataset.class_names,
        data=test,
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "float.tflite"
        export_float_tflite(load_model(job.run.baseline), path)
        baseline_latency, baseline_bytes = measure_latency_ms(path), path.stat().st_size
        export_float_tflite(slim, path)
        slim_latency, slim_bytes = measure_latency_ms(path), path.stat().st_size
    total = len(dataset.test)
    job.console.say(f"export: measuring accuracy on {total} test images")
    with job.console.progress("export", "images") as show:
        accuracy = evaluate_tflite(
            job.run.tflite, test, progress=lambda done, _, figures: show(done, total, figures)
        )
    figures: Figures = {
        "tflite_bytes": exported.bytes,
        "tflite_float_ops": exported.float_ops,
        "tflite_operators": dict(exported.operators),
        "tflite_agreement": exported.agreement,
        "tflite_agreement_examples": min(total, CHECKED_EXAMPLES),
        "tflite_difference": exported.difference,
        "baseline_tflite_bytes": baseline_bytes,
        "slim_tflite_bytes": slim_bytes,
        "tflite_latency_ms": measure_latency_ms(job.run.tflite),
        "baseline_latency_ms": baseline_latency,
        "slim_latency_ms": slim_latency,
        "tflite_accuracy": accuracy,
    }
    job.console.say("export: measuring the quantization error of each layer", level=2)
    batches = evaluation_batches(dataset.validation, dataset, COMPARED_BATCH_SIZE)
    figures["quantization"] = quantization_report(
        slim, qat, job.run.tflite, batches, batches=COMPARED_BATCHES
    ).to_json()
    return figures


STAGE = Stage(
    name="export",
    settings=settings,
    inputs=lambda run: (run.qat, run.finetuned, run.baseline),
    outputs=lambda run: (run.tflite, run.tflite_metadata),
    run=run,
)
