"""Where the trained model of a run comes from when it need not be trained."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import tf_keras

from ehap_tf import files
from ehap_tf.data import ImageDataset
from ehap_tf.models import (
    APPLICATIONS,
    MODEL_NAMES,
    load_model,
    require_finite_weights,
    require_functional,
)
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.named_paths import require_model_path
from ehap_tf.pipeline.command.preprocessing import input_shape
from ehap_tf.pipeline.command.run_directory import RunDirectory, digest
from ehap_tf.pipeline.command.stage_records import StageRecord, read_records


def find_baseline(
    config: PipelineConfig, training: dict[str, object], checkpoints: pathlib.Path
) -> pathlib.Path | None:
    """The saved model that makes training unnecessary, or None.

    In this order: the model that --model or --baseline names; `baseline.keras` in
    `saved_models/<model>_<dataset>/`; the baseline of any run in `saved_models/` that was trained
    with the settings `training`. A training that was begun here is finished before another
    model is looked for, and a start afresh takes nothing from other runs.

    Raises:
        ValueError: --model is neither a name nor a path.
        FileNotFoundError: a named file does not exist.
    """
    named = require_model_path(config)
    if named is not None:
        return named
    if config.model not in (*MODEL_NAMES, *APPLICATIONS):
        raise ValueError(
            f"model must be one of {', '.join(MODEL_NAMES)}, a network of tf_keras.applications "
            f"({', '.join(APPLICATIONS)}), or the path of a saved model "
            f"(.keras, .h5, or a SavedModel folder). Received: {config.model}"
        )
    if config.baseline == "train" or checkpoints.exists():
        return None
    saved_models = pathlib.Path("saved_models")
    published = RunDirectory(saved_models / config.experiment)
    if published.baseline.exists() and not _is_own_training(published, config):
        return published.baseline
    if not config.resume:
        return None
    for folder in sorted(saved_models.glob("*/")):
        other = RunDirectory(folder)
        if other.path != config.run_path and _was_trained_so(other, training):
            return other.baseline
    return None


def load_baseline(source: pathlib.Path) -> tf_keras.Model:
    """The saved model at `source`, of one input for images and one output.

    Raises:
        CorruptFileError: the file cannot be read.
        ValueError: it is another kind of model; with its path.
    """
    model = load_model(source)
    try:
        require_finite_weights(model)
        require_functional(model)
        _require_one_each(model)
        input_shape(model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return model


def check_classes(model: tf_keras.Model, dataset: ImageDataset, source: pathlib.Path) -> None:
    """Raises ValueError when a loaded model has another number of outputs than classes."""
    outputs = tuple(model.outputs[0].shape[1:])
    is_binary = outputs == (1,) and dataset.num_classes == 2
    if outputs != (dataset.num_classes,) and not is_binary:
        raise ValueError(
            f"{source}: the model's output has shape {outputs}, the data set {dataset.name!r} "
            f"has {dataset.num_classes} classes"
        )


def trained_normalization(source: pathlib.Path) -> str | None:
    """The convention in which this command trained the model at `source`, or None."""
    record = _train_record(RunDirectory(source.parent))
    if record is None or record.outputs.get(source.name) != digest(source):
        return None
    return str(record.figures.get("normalization", "dataset"))


def _require_one_each(model: tf_keras.Model) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "the command takes models with one input and one output. Received: "
            f"{len(model.inputs)} and {len(model.outputs)}. The library's functions take others"
        )
    if isinstance(model.output, Mapping):
        raise ValueError(
            "the command takes a model whose output is a tensor. Received: a dict with "
            f"{', '.join(model.output)}; save tf_keras.Model(model.input, model.outputs[0])"
        )


def existing_path(name: str) -> pathlib.Path | None:
    """The path that a flag names, or None when nothing lies there."""
    path = pathlib.Path(name)
    return path if path.exists() else None


def _is_own_training(published: RunDirectory, config: PipelineConfig) -> bool:
    """Whether a baseline is this run's own, trained by it with settings that hold no longer."""
    if published.path.resolve() != config.run_path.resolve():
        return False
    record = _train_record(published)
    return record is not None and "source" not in record.figures


def _was_trained_so(other: RunDirectory, training: dict[str, object]) -> bool:
    record = _train_record(other)
    if record is None or dict(record.settings) != training or not other.baseline.exists():
        return False
    if "source" in record.figures:
        return False  # It was not trained there, nor need it have been with those settings.
    return digest(other.baseline) == record.outputs.get(other.baseline.name)


def _train_record(run: RunDirectory) -> StageRecord | None:
    try:
        return read_records(run).get("train")
    except (files.CorruptFileError, OSError):
        return None
