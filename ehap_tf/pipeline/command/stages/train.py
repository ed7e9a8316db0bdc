"""Stage `train`: the baseline, trained or taken from where one lies."""

from __future__ import annotations

from typing import Any

from ehap_tf import files
from ehap_tf.models import build_model, save_model
from ehap_tf.pipeline.command import baseline, recipes
from ehap_tf.pipeline.command.config import PipelineConfig, is_saved_model
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.ranking import wanted_blocks
from ehap_tf.pipeline.command.run_directory import digest
from ehap_tf.pipeline.command.stages import quantize
from ehap_tf.pipeline.training.evaluation import accuracy


def settings(config: PipelineConfig) -> dict[str, Any]:
    """Model, data and recipe; of a saved model its content."""
    values = select(config, "model", "dataset", "baseline")
    for name in ("model", "baseline"):
        if is_saved_model(values[name]) and (path := baseline.existing_path(values[name])):
            values[f"--{name} digest"] = digest(path)
    return values | recipes.training_settings(config, "train")


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `baseline.keras`."""
    checkpoints = job.run.checkpoints("train", fingerprint)
    source = None
    if job.workers.is_chief:
        source = baseline.find_baseline(job.config, settings(job.config), checkpoints)
    figures: Figures = {}
    if job.workers.value_from_chief(source is not None) and not job.workers.is_chief:
        return figures
    if source is None:
        dataset = job.dataset
        model = build_model(
            job.config.model, dataset.num_classes, dataset.input_shape, job.config.seed
        )
        # Before hours of training, not after.
        wanted_blocks(job.config, model)
        quantize.check_layers(job, model)
        _require_enough_images(job)
        model, result = recipes.train_as(job, model, "train", checkpoints)
        save_model(model, job.run.baseline)
        figures |= {"epochs": result.epochs, "best_epoch": result.best_epoch}
    else:
        model = baseline.load_baseline(source, job.dataset)
        quantize.check_layers(job, model)
        job.console.say(f"train: skipped, the trained model is {source}")
        figures["source"] = str(source)
        if source.suffix == ".keras":
            if source.resolve() != job.run.baseline.resolve():
                files.write_bytes(job.run.baseline, source.read_bytes())
        else:
            save_model(model, job.run.baseline)
    figures["baseline_accuracy"] = accuracy(model, job.dataset.test, job.dataset)
    if source is not None and figures["baseline_accuracy"] < 1.5 / job.dataset.num_classes:
        job.console.say(
            f"train: {source} is hardly better than chance on {job.dataset.name}. Was it trained "
            f"on images normalised to (pixel / 255 - mean) / deviation, with mean "
            f"{job.dataset.mean} and deviation {job.dataset.std}?",
            level=0,
        )
    return figures


def _require_enough_images(job: Job) -> None:
    wanted, there = job.config.hessian_batch_size, len(job.dataset.train)
    if "rank" in job.config.stages and wanted > there:
        raise ValueError(
            f"hessian_batch_size must be at most {there}, the training images of "
            f"{job.dataset.name}. Received: {wanted}"
        )


STAGE = Stage(
    name="train",
    settings=settings,
    inputs=lambda run: (),
    outputs=lambda run: (run.baseline,),
    run=run,
    shared=True,
)
