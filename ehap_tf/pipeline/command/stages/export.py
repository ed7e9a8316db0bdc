"""Stage `export`: the integer file, and what it does on the whole test set."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import tf_keras

from ehap_tf.budget import ACCELERATORS, LITERT, compile_for_ethos_u, verify_micro
from ehap_tf.data import evaluation_batches, formula
from ehap_tf.models import Readout, load_model
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.stages.quantize import file_settings
from ehap_tf.quantization import (
    Normalization,
    evaluate_tflite,
    export_float_tflite,
    export_tflite,
    load_qat,
    measure_latency_ms,
    quantization_report,
    quantize,
)
from ehap_tf.quantization.tflite.conversion import CHECKED_EXAMPLES

COMPARED_BATCHES, COMPARED_BATCH_SIZE = 4, 32
"""Validation images on which the error of each layer is measured."""
BASELINE_EXAMPLES = 256
"""Training images with which the whole network is made integer, to compare with."""
TEST_BATCH_SIZE = 128
"""Of the test images: the file is compared with the QAT model on the first ones, scored on all."""


def settings(config: PipelineConfig) -> dict[str, Any]:
    """The data that the file is measured on; everything else is in qat.h5."""
    values = file_settings(config)
    if config.target != LITERT:
        values |= select(config, "target")
    return values


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `model_int8.tflite` and its metadata."""
    del fingerprint
    job.console.say("export: converting to full-integer TFLite")
    qat, slim = load_qat(job.run.qat), load_model(job.run.finetuned)
    dataset, threshold = job.dataset, Readout.of(slim).threshold
    test = evaluation_batches(dataset.test, dataset, TEST_BATCH_SIZE)
    exported = export_tflite(
        qat,
        job.run.tflite,
        allow_float=job.config.allow_float,
        normalization=Normalization(dataset.mean, dataset.std, dataset.bgr),
        labels=dataset.class_names,
        data=test,
    )
    figures = _beside_it(job, slim, test)
    total = len(dataset.test)
    job.console.say(f"export: measuring accuracy on {total} test images")
    with job.console.progress("export", "images") as show:
        accuracy = evaluate_tflite(
            job.run.tflite,
            test,
            threshold=threshold,
            progress=lambda done, _, figures: show(done, total, figures),
        )
    figures |= {
        "preprocessing": formula(dataset.mean, dataset.std, dataset.bgr),
        "tflite_bytes": exported.bytes,
        "tflite_arena_bytes": exported.arena_bytes,
        "tflite_float_ops": exported.float_ops,
        "tflite_operators": dict(exported.operators),
        "tflite_agreement": exported.agreement,
        "tflite_agreement_examples": min(total, CHECKED_EXAMPLES),
        "tflite_difference": exported.difference,
        "tflite_latency_ms": measure_latency_ms(job.run.tflite),
        "tflite_accuracy": accuracy,
    }
    if job.config.target != LITERT:
        job.console.say(f"export: trying the file on {job.config.target}")
        figures |= _on_target(job.run.tflite, job.config.target, test)
    job.console.say("export: measuring the quantization error of each layer", level=2)
    batches = evaluation_batches(dataset.validation, dataset, COMPARED_BATCH_SIZE)
    figures["quantization"] = quantization_report(
        slim, qat, job.run.tflite, batches, batches=COMPARED_BATCHES, threshold=threshold
    ).to_json()
    return figures


def _beside_it(job: Job, slim: tf_keras.Model, test: Any) -> Figures:
    """What the whole network and the float one cost as files, to compare with."""
    job.console.say("export: the whole network and the float one beside it", level=2)
    whole = load_model(job.run.baseline)
    rounded = quantize(
        whole,
        "ptq",
        activation_bits=job.config.activation_bits,
        representative_data=job.sample(BASELINE_EXAMPLES),
        allow_float=job.config.allow_float,
    )
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "other.tflite"
        for name, write in (
            ("baseline", lambda: export_float_tflite(whole, path)),
            ("slim", lambda: export_float_tflite(slim, path)),
            (
                "baseline_int8",
                lambda: export_tflite(rounded, path, allow_float=job.config.allow_float),
            ),
        ):
            file = write()
            figures |= {
                f"{name}_tflite_bytes": file.bytes,
                f"{name}_tflite_arena_bytes": file.arena_bytes,
                f"{name}_latency_ms": measure_latency_ms(path),
            }
        figures["baseline_int8_accuracy"] = evaluate_tflite(
            path, test, threshold=Readout.of(whole).threshold
        )
    return figures


def _on_target(path: pathlib.Path, target: str, test: Any) -> Figures:
    check = verify_micro(path, test)
    figures: Figures = {
        "micro_arena_bytes": check.arena_bytes,
        "micro_examples": check.examples,
        "micro_equal": check.equal,
        "micro_agreement": check.agreement,
    }
    if target in ACCELERATORS:
        estimate = compile_for_ethos_u(path, target)
        figures |= {
            "ethos_u": estimate.accelerator,
            "ethos_u_cycles": estimate.cycles,
            "ethos_u_ms": estimate.milliseconds,
            "ethos_u_sram_bytes": estimate.sram_bytes,
            "ethos_u_cpu_operators": estimate.cpu_operators,
        }
    return figures


STAGE = Stage(
    name="export",
    settings=settings,
    inputs=lambda run: (run.qat, run.finetuned, run.baseline),
    outputs=lambda run: (run.tflite, run.tflite_metadata),
    run=run,
)
