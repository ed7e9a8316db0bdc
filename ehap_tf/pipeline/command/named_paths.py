"""The paths that flags name, checked before TensorFlow is loaded."""

from __future__ import annotations

import pathlib

from ehap_tf.pipeline.command.config import PipelineConfig, is_saved_model


def require_path(flag: str, name: str, meaning: str) -> pathlib.Path:
    """The path that a flag names.

    Args:
        flag: with its dashes.
        name: what it was given.
        meaning: what it takes, for the error.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    path = pathlib.Path(name)
    if not path.exists():
        raise FileNotFoundError(f"{flag}={name}: there is no such file. Give {meaning}")
    return path


def require_model_path(config: PipelineConfig) -> pathlib.Path | None:
    """The saved model that --baseline or --model names; None when neither does.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    if config.baseline not in ("auto", "train"):
        meaning = "auto, train, or the path of a saved model"
        return require_path("--baseline", config.baseline, meaning)
    if is_saved_model(config.model):
        return require_path("--model", config.model, "a built-in model or the path of a saved one")
    return None


def require_named_paths(config: PipelineConfig) -> None:
    """Refuses paths of a new run that are not there, before anything is loaded or written.

    A run that has begun is left alone: its finished stages do not read them again.

    Raises:
        FileNotFoundError: a model, or a folder of images, is not there.
        ValueError: --dataset is a path without `folder:`.
    """
    if config.run_path.exists():
        return
    if "train" in config.stages:
        require_model_path(config)
    kind, colon, folder = config.dataset.partition(":")
    if kind == "folder" and folder and not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(f"--dataset={config.dataset}: there is no folder {folder}")
    if not colon and "/" in config.dataset:
        raise ValueError(
            f"--dataset={config.dataset} is a path. Did you mean --dataset=folder:{config.dataset}?"
        )
