"""Stage `quantize`: the fine-tuned model in integers, trained or rounded for what it computes."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf import files
from ehap_tf.budget import require_target
from ehap_tf.models import load_model
from ehap_tf.pipeline.command import recipes
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.ranking import traces_of
from ehap_tf.pipeline.training.evaluation import accuracy
from ehap_tf.quantization import (
    plan_quantization,
    quantize,
    require_quantizable,
    require_target_bytes,
    round_biases,
    save_qat,
)

CALIBRATION_EXAMPLES = 1280
"""Training images that set the first activation ranges: ten batches of 128 (BUILD_NOTES)."""


def settings(config: PipelineConfig) -> dict[str, Any]:
    """Data, bits, rounding and recipe."""
    values = file_settings(config) | recipes.training_settings(config, "quantize")
    if config.rounding != "nearest":
        values |= select(config, "rounding")
    if config.target_bytes is not None:
        values |= select(config, "target_bytes", "hessian_batch_size")
    return values


def file_settings(config: PipelineConfig) -> dict[str, Any]:
    """Data, bits, and whether the file may hold float operators."""
    values = select(config, "dataset", "weight_bits")
    if config.activation_bits != 8:
        values |= select(config, "activation_bits")
    if config.allow_float:
        values |= select(config, "allow_float")
    return values


def check_layers(job: Job, model: tf_keras.Model) -> None:
    """Raises, before hours of work, what this stage and the export would raise after them.

    Raises:
        ValueError: the job quantizes the model, and a layer of it has no integer kernel, or the
            target lacks an operator of its file.
        ImportError: the target needs an extra that is not installed.
    """
    config = job.config
    if "quantize" not in config.stages:
        return
    bits = {"weight_bits": config.weight_bits, "activation_bits": config.activation_bits}
    require_quantizable(model, **bits, allow_float=config.allow_float)
    if config.target_bytes is not None and job.run.slim.exists():
        # Bits can save no more; whether that is enough is known once the network is slim.
        require_target_bytes(model, config.target_bytes, allow_float=config.allow_float)
    on_cpu = require_target(model, config.target, **bits, allow_float=config.allow_float)
    if on_cpu:
        job.console.say(
            f"quantize: {config.target} leaves {', '.join(on_cpu)} to the processor beside it"
        )


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `qat.h5`, and with a target the plan of bits."""
    config = job.config
    slim = load_model(job.run.finetuned)
    plan = plan_quantization(
        slim,
        config.weight_bits,
        config.activation_bits,
        allow_float=config.allow_float,
        target_bytes=config.target_bytes,
        scores=None if config.target_bytes is None else traces_of(job, slim),
    )
    if config.target_bytes is not None:
        job.console.say(f"quantize: {config.target_bytes:,} bytes: {plan}")
        files.write_text(job.run.quantization_plan, plan.to_json())
    qat = quantize(
        slim,
        method="qat" if config.rounding == "nearest" else "ptq",
        representative_data=job.sample(CALIBRATION_EXAMPLES),
        rounding=config.rounding,
        plan=plan,
    )
    recipe = recipes.recipe_of(job, "quantize", recipes.training_settings(config, "quantize"))
    checkpoints = job.run.checkpoints("quantize", fingerprint)
    # Training ends on the very affine maps that the export folds into the convolutions.
    result = recipes.fit_with_progress(
        job, qat, recipe, "quantize", checkpoints, freeze_batch_norm_after=recipe.epochs // 2
    )
    round_biases(qat)
    save_qat(qat, job.run.qat)
    return {
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "qat_accuracy": accuracy(qat, job.dataset.test, job.dataset),
    }


STAGE = Stage(
    name="quantize",
    settings=settings,
    inputs=lambda run: (run.finetuned,),
    outputs=lambda run: (run.qat,),
    run=run,
    shared=True,
)
