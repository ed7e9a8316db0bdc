"""Stage `finetune`: the slim model trained on."""

from __future__ import annotations

from typing import Any

from ehap_tf.models import load_model, save_model
from ehap_tf.pipeline.command import recipes
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.stages import quantize
from ehap_tf.pipeline.training.evaluation import accuracy


def settings(config: PipelineConfig) -> dict[str, Any]:
    """Data and recipe."""
    return select(config, "dataset") | recipes.training_settings(config, "finetune")


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `finetuned.keras`."""
    slim = load_model(job.run.slim)
    # The baseline may be of a run without this stage.
    quantize.check_layers(job, slim)
    checkpoints = job.run.checkpoints("finetune", fingerprint)
    model, result = recipes.train_as(job, slim, "finetune", checkpoints)
    save_model(model, job.run.finetuned)
    return {
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "finetuned_accuracy": accuracy(model, job.dataset.test, job.dataset),
    }


STAGE = Stage(
    name="finetune",
    settings=settings,
    inputs=lambda run: (run.slim,),
    outputs=lambda run: (run.finetuned,),
    run=run,
    shared=True,
)
