"""The three trainings of a run: their recipes, and training under a precision."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import tf_keras

from ehap_tf.data import FEWEST_STEPS, fitting_batch
from ehap_tf.models import clone_with_policy
from ehap_tf.models.precision import policy_of, resolve_precision
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Job
from ehap_tf.pipeline.training.devices import divided_batch
from ehap_tf.pipeline.training.fitting import TrainingRecipe, TrainingResult, fit
from ehap_tf.pipeline.training.tensorboard import epoch_log


def training_settings(config: PipelineConfig, stage: str) -> dict[str, Any]:
    """What the training of `stage` ("train", "finetune", "quantize") depends on, as JSON values.

    The settings that follow from another flag appear with the value that holds, so that a flag
    touches only the trainings that it reaches.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if stage == "train":
        epochs, precision = config.train_epochs, config.train_precision
    elif stage == "finetune":
        epochs, precision = config.finetune_epochs, config.train_precision
        rate = _given(config.finetune_learning_rate, rate / 2)
        decay = _given(config.finetune_weight_decay, decay)
    else:
        # Fake quantization simulates an 8-bit grid; bf16, with 8 bits itself, would blur it.
        epochs, precision = config.qat_epochs, "fp32"
        rate = _given(config.qat_learning_rate, rate / 50)
        decay = _given(config.qat_weight_decay, decay / 5)
    return {
        "epochs": epochs,
        "learning_rate": rate,
        "weight_decay": decay,
        "warmup_epochs": min(config.warmup_epochs, epochs / 2) if stage == "train" else 0.0,
        "batch_size": config.batch_size,
        "train_precision": precision,
        "seed": config.seed,
    }


def train_as(
    job: Job,
    model: tf_keras.Model,
    stage: str,
    checkpoints: pathlib.Path,
    epochs: int | None = None,
) -> tuple[tf_keras.Model, TrainingResult]:
    """Trains a copy of `model` and returns it in float32, with the best validation weights.

    Progress goes to the console, the curve to the stage's history file. Training resumes from
    `checkpoints` when there are some. `epochs` are those of the stage when None.
    """
    settings = training_settings(job.config, stage)
    if epochs is not None:
        settings |= {"epochs": epochs, "warmup_epochs": min(settings["warmup_epochs"], epochs / 2)}
    precision = resolve_precision(settings["train_precision"])
    recipe = recipe_of(job, stage, settings)
    trained = clone_with_policy(model, policy_of(precision))
    job.console.say(
        f"{stage}: {recipe.epochs} epochs, batch {recipe.batch_size}, learning rate "
        f"{recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, {precision}"
    )
    result = fit_with_progress(job, trained, recipe, stage, checkpoints)
    return clone_with_policy(trained, "float32"), result


def recipe_of(job: Job, stage: str, settings: Mapping[str, Any]) -> TrainingRecipe:
    """The recipe that `training_settings` mean, with batches that the training images fill.

    The learning rate is one for the batches that were asked for, and is smaller in proportion for
    smaller ones.
    """
    images, wanted = len(job.dataset.train), settings["batch_size"]
    batch_size = fitting_batch(images, wanted)
    rate = settings["learning_rate"] * batch_size / wanted
    if batch_size < wanted:
        job.console.say(
            f"{stage}: batches of {batch_size} instead of {wanted}, for {FEWEST_STEPS} steps in an "
            f"epoch of {images} images, and a learning rate of {rate:.3g} instead of "
            f"{settings['learning_rate']:.3g}"
        )
    return TrainingRecipe(
        epochs=settings["epochs"],
        learning_rate=rate,
        weight_decay=settings["weight_decay"],
        batch_size=batch_size,
        warmup_epochs=settings["warmup_epochs"],
    )


def fit_with_progress(
    job: Job,
    model: tf_keras.Model,
    recipe: TrainingRecipe,
    stage: str,
    checkpoints: pathlib.Path,
    **options: Any,
) -> TrainingResult:
    """`training.fit` on the job's data, with its progress on the console and its curve kept."""
    divided = divided_batch(recipe.batch_size, job.strategy)
    if divided:
        job.console.say(f"{stage}: {divided}")
    with (
        job.console.progress(stage, "steps") as progress,
        epoch_log(job.run.events(stage) if job.workers.is_chief else None) as log,
    ):
        result = fit(
            model,
            job.dataset,
            recipe,
            directory=checkpoints,
            seed=job.config.seed,
            progress=progress,
            strategy=job.strategy,
            log=log,
            **options,
        )
    job.run.write_json(job.run.history(stage), {"epochs": list(result.history)})
    if recipe.epochs and not result.best_epoch:
        job.console.say(
            f"{stage}: no epoch was better on the validation images than the network before, which "
            "stays; a smaller learning rate may help"
        )
    if result.resumed_epochs:
        job.console.say(f"{stage}: went on after epoch {result.resumed_epochs}")
    return result


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
