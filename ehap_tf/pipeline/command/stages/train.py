"""Stage `train`: the baseline, trained or taken from where one lies."""

from __future__ import annotations

import pathlib
from typing import Any

import tf_keras

from ehap_tf import files
from ehap_tf.data import ImageDataset, formula, in_convention
from ehap_tf.models import (
    APPLICATIONS,
    build_model,
    load_imagenet,
    load_pretrained,
    save_model,
)
from ehap_tf.pipeline.command import baseline, recipes
from ehap_tf.pipeline.command.config import PipelineConfig, is_saved_model
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.preprocessing import Preprocessing, input_shape
from ehap_tf.pipeline.command.ranking import wanted_blocks
from ehap_tf.pipeline.command.run_directory import digest
from ehap_tf.pipeline.command.stages import quantize
from ehap_tf.pipeline.training.conventions import is_chance, try_conventions
from ehap_tf.pipeline.training.evaluation import accuracy

HEAD_SHARE = 5
"""A new head is trained for one of so many of the epochs, before the whole network."""


def settings(config: PipelineConfig) -> dict[str, Any]:
    """Model, data and recipe; of a saved model its content."""
    values = select(config, "model", "dataset", "baseline") | config.network_settings
    if config.weights is not None and (path := baseline.existing_path(config.weights)):
        values["--weights digest"] = digest(path)
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
    if job.workers.value_from_chief(source is not None) and not job.workers.is_chief:
        return {}
    figures = _trained(job, checkpoints) if source is None else _taken(job, source)
    return figures | job.preprocessing.figures()


def _trained(job: Job, checkpoints: pathlib.Path) -> Figures:
    config = job.config
    normalization = config.normalization
    if normalization == "auto":
        known = APPLICATIONS.get(config.model)
        normalization = known.normalization if known else "dataset"
    job.preprocessing = Preprocessing((config.image_size, config.image_size, None), normalization)
    dataset = job.dataset
    model = build_model(
        config.model, dataset.num_classes, dataset.input_shape, config.seed, config.width
    )
    # Before hours of training, not after.
    wanted_blocks(config, model)
    quantize.check_layers(job, model)
    if config.weights is not None:
        model = _pretrained(job, model, config.weights, checkpoints)
    model, result = recipes.train_as(job, model, "train", checkpoints)
    save_model(model, job.run.baseline)
    return {
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "baseline_accuracy": accuracy(model, dataset.test, dataset),
    }


def _pretrained(
    job: Job, model: tf_keras.Model, weights: str, checkpoints: pathlib.Path
) -> tf_keras.Model:
    """The network with the weights of --weights; a head for other classes, trained alone."""
    config = job.config
    if config.model not in APPLICATIONS:
        raise ValueError(
            "weights go with a network of tf_keras.applications; for another give its saved model, "
            f"--model=PATH. Received: weights={weights}, model={config.model}"
        )
    if weights == "imagenet":
        drawn = load_imagenet(model, config.model)
    else:
        drawn = load_pretrained(model, weights)
    if not drawn:
        return model
    job.console.say(f"train: {', '.join(drawn)} is new, for {job.dataset.num_classes} classes")
    for layer in model.layers:
        layer.trainable = layer.name in drawn
    epochs = max(1, config.train_epochs // HEAD_SHARE) if config.train_epochs else 0
    model, _ = recipes.train_as(job, model, "train", checkpoints / "head", epochs=epochs)
    for layer in model.layers:
        layer.trainable = True
    return model


def _taken(job: Job, source: pathlib.Path) -> Figures:
    model = baseline.load_baseline(source)
    quantize.check_layers(job, model)
    dataset = job.load_images(input_shape(model))
    baseline.check_classes(model, dataset, source)
    job.console.say(f"train: skipped, the trained model is {source}")
    normalization = job.config.normalization
    trained = baseline.trained_normalization(source)
    if normalization == "auto":
        normalization = trained or _found(job, model, dataset, source)
    job.preprocessing = Preprocessing(input_shape(model), normalization)
    share = accuracy(model, dataset.test, job.dataset)
    if trained is None and is_chance(share, dataset.test.labels):
        _stop_unless_forced(
            job,
            f"{source} does no better than chance on {dataset.name} ({normalization}: "
            f"{share:.1%} of the test images). Does it know these classes, "
            "in alphabetical order of their folders?",
        )
    if source.suffix != ".keras":
        save_model(model, job.run.baseline)
    elif source.resolve() != job.run.baseline.resolve():
        files.write_bytes(job.run.baseline, source.read_bytes())
    return {"source": str(source), "baseline_accuracy": share}


def _found(job: Job, model: tf_keras.Model, dataset: ImageDataset, source: pathlib.Path) -> str:
    """The convention in which the model does best, which is said.

    Raises:
        ValueError: it is at chance in all of them, and --force is not given.
    """
    with job.console.progress("train: normalization", "tried") as progress:
        trials = try_conventions(model, dataset, progress=progress)
    tried = ", ".join(f"{name} {trial.accuracy:.1%}" for name, trial in trials.items())
    best = next(iter(trials))
    known = in_convention(dataset, best)
    if all(trial.is_chance for trial in trials.values()):
        _stop_unless_forced(
            job,
            f"{source} does no better than chance on {dataset.name}, however its pixels are "
            f"normalised: {tried} of the images. Are the classes the same, and in the same order "
            f"({', '.join(dataset.class_names[:10])}{', ...' * (dataset.num_classes > 10)})? A "
            "model with another preprocessing needs it inside",
        )
    job.console.say(
        f"train: normalization {best}, {formula(known.mean, known.std, known.bgr)}, in which the "
        f"model does best ({tried})"
    )
    return best


def _stop_unless_forced(job: Job, reason: str) -> None:
    if not job.config.force:
        raise ValueError(f"{reason}. --force goes on all the same")
    job.console.say(f"train: {reason}; --force: going on", level=0)


STAGE = Stage(
    name="train",
    settings=settings,
    inputs=lambda run: (),
    outputs=lambda run: (run.baseline,),
    run=run,
    shared=True,
)
