"""Training that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.data import ImageDataset, evaluation_batches, steps_per_epoch, training_batches
from ehap_tf.files import CorruptFileError, set_aside
from ehap_tf.pipeline.training.checkpoint import TrainingState
from ehap_tf.pipeline.training.devices import distributed_batches
from ehap_tf.pipeline.training.trainer import Trainer, TrainingRecipe
from ehap_tf.pipeline.training.workers import Workers
from ehap_tf.progress import ProgressCallback, no_progress

__all__ = ["TrainingRecipe", "TrainingResult", "fit"]

CHECKPOINTS = ("last.npz", "best.npz")
"""Names of the files that hold the state after the last epoch, and after the best."""

EpochLog = Callable[[Mapping[str, float]], None]
"""Receives the figures of each whole epoch."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training came to.

    Attributes:
        epochs: whole epochs trained, those of earlier calls included.
        best_epoch: after which of them validation accuracy was highest; 0 where it was before all.
        best_accuracy: that validation accuracy, the one of the weights now in the model.
        history: one dict per epoch: epoch, loss, accuracy, validation_accuracy, learning_rate,
            seconds.
        resumed_epochs: how many of the epochs an earlier call had trained.
        notes: what went otherwise than planned, e.g. a damaged checkpoint that was set aside.
    """

    epochs: int
    best_epoch: int
    best_accuracy: float
    history: tuple[dict[str, float], ...]
    resumed_epochs: int
    notes: tuple[str, ...]


def fit(
    model: tf_keras.Model,
    dataset: ImageDataset,
    recipe: TrainingRecipe,
    *,
    directory: str | os.PathLike[str],
    seed: int,
    progress: ProgressCallback = no_progress,
    resume: bool = True,
    strategy: tf.distribute.Strategy | None = None,
    freeze_batch_norm_after: int | None = None,
    log: EpochLog = lambda figures: None,
) -> TrainingResult:
    """Trains `model` in place and leaves it with the weights of its best validation epoch.

    Those are the weights that it came with where every epoch is worse.

    After every epoch the whole state goes to `directory`/last.npz (and best.npz), atomically. A
    call with the same arguments takes it up from there and ends with the weights, bit for bit on a
    CPU, of a training that was never interrupted (layers with random numbers of their own, such as
    Dropout, excepted).

    Args:
        model: ends in logits or softmax; the caller's own copy. Its compile state is not used.
        dataset: its training and validation splits are used, never its test split.
        recipe: the settings.
        directory: where the checkpoints are.
        seed: of order and augmentation.
        progress: called with steps done, steps in all, and figures: epoch, loss, accuracy and
            validation_accuracy, learning_rate.
        resume: False ignores (and overwrites) what is in `directory`.
        strategy: divides each batch among its devices, the learning rate stays as it is; a model
            made outside its scope is copied into it. Of several processes, which all make the same
            call, the chief reads and writes the checkpoints.
        freeze_batch_norm_after: from this epoch on (counted from 0), BatchNorm layers keep their
            statistics; gamma and beta too, but for those of a QAT model.
        log: called with the figures of every whole epoch, those of earlier calls included.

    Raises:
        FloatingPointError: the loss is NaN or infinite; the last good checkpoint is kept.
        ValueError: the checkpoint in `directory` is of another training, or the training split is
            smaller than a batch.
    """
    folder = pathlib.Path(directory)
    steps = steps_per_epoch(dataset, recipe.batch_size)
    strategy = strategy or tf.distribute.get_strategy()
    settings = _settings(model, dataset, recipe, seed, freeze_batch_norm_after)
    workers = Workers(strategy)
    trainer = Trainer(model, recipe, steps, strategy)
    validation = evaluation_batches(dataset.validation, dataset, 256)
    found, notes = _resume(folder, settings) if resume and workers.is_chief else (None, [])
    fresh = trainer.state(0, 0, -1.0, (), settings)
    if recipe.epochs and not workers.value_from_chief(found is not None):
        start = _validated(trainer, workers, validation)
        fresh = trainer.state(0, 0, start, (), settings)
    state = best = _chiefs(workers, found or fresh)
    trainer.load(state)
    if state.best_epoch < state.epoch and workers.is_chief:
        best = _load_best(folder, state, notes) if state.best_epoch else fresh
        best = dataclasses.replace(best, best_accuracy=state.best_accuracy)
    first_epoch = state.epoch
    epochs = range(first_epoch, recipe.epochs)
    stream = training_batches(dataset, recipe.batch_size, seed, first_epoch, max(1, len(epochs)))
    batches = iter(distributed_batches(stream, recipe.batch_size, strategy))
    for past in state.history:
        log(past)
    try:
        for epoch in epochs:
            if freeze_batch_norm_after is not None and epoch >= freeze_batch_norm_after:
                trainer.freeze_batch_norm()
            began = time.monotonic()
            figures = trainer.run_epoch(batches, epoch, progress, folder)
            figures["validation_accuracy"] = _validated(trainer, workers, validation)
            figures["seconds"] = time.monotonic() - began
            state = _after(trainer, state, figures)
            is_best = state.best_epoch == state.epoch
            if workers.is_chief:
                # best.npz first: a crash in between repeats this epoch and writes the same again.
                state.save(*([folder / "best.npz"] if is_best else []), folder / "last.npz")
            best = state if is_best else best
            progress((epoch + 1) * steps, recipe.epochs * steps, figures)
            log(figures)
        best = _chiefs(workers, best)
        if best.epoch != state.epoch:
            trainer.load(best)
    finally:
        trainer.unfreeze()
    trainer.hand_over()
    accuracy = best.best_accuracy if recipe.epochs else trainer.evaluate(validation)
    return TrainingResult(
        state.epoch, best.best_epoch, accuracy, state.history, first_epoch, tuple(notes)
    )


def _settings(
    model: tf_keras.Model,
    dataset: ImageDataset,
    recipe: TrainingRecipe,
    seed: int,
    freeze_batch_norm_after: int | None,
) -> dict[str, Any]:
    """What a training must have in common with a checkpoint that it goes on from."""
    return {
        "dataset": dataset.name,
        "examples": len(dataset.train),
        "seed": seed,
        "freeze_batch_norm_after": freeze_batch_norm_after,
        # Another one would go on in other arithmetic, and has other loss scales.
        "precision": sorted({layer.compute_dtype for layer in model.layers}),
        "recipe": dataclasses.asdict(recipe),
    }


def _validated(trainer: Trainer, workers: Workers, validation: Any) -> float:
    """The chief's accuracy of what is trained by now, in every process."""
    trainer.hand_over()
    return workers.value_from_chief(trainer.evaluate(validation) if workers.is_chief else 0.0)


def _after(trainer: Trainer, state: TrainingState, figures: dict[str, float]) -> TrainingState:
    """The state after one more epoch, which may be the best one."""
    epoch, accuracy = state.epoch + 1, figures["validation_accuracy"]
    best_epoch, best_accuracy = state.best_epoch, state.best_accuracy
    # An epoch is preferred to the weights of the start, and an early one to a late one.
    if accuracy > best_accuracy or (best_epoch == 0 and accuracy == best_accuracy):
        best_epoch, best_accuracy = epoch, accuracy
    history = (*state.history, figures)
    return trainer.state(epoch, best_epoch, best_accuracy, history, state.settings)


def _chiefs(workers: Workers, state: TrainingState) -> TrainingState:
    """The chief's state, in every process."""
    if workers.count == 1:
        return state
    content = workers.from_chief(state.to_bytes() if workers.is_chief else b"")
    return TrainingState.from_bytes(content)


def _resume(
    folder: pathlib.Path, settings: dict[str, Any]
) -> tuple[TrainingState | None, list[str]]:
    notes: list[str] = []
    for name in CHECKPOINTS:
        path = folder / name
        if not path.exists():
            continue
        try:
            state = TrainingState.load(path)
        except CorruptFileError as error:
            _note(notes, f"{error}; it was set aside as {set_aside(path).name}")
            continue
        if state.settings != settings:
            raise ValueError(
                f"The checkpoint {path} is of another training: it was made with "
                f"{state.settings}. Received: {settings}. Use another directory, or resume=False"
            )
        if notes:
            _note(notes, f"The training goes on from {path} (after epoch {state.epoch})")
        return state, notes
    if notes:
        _note(notes, "The training starts from the beginning: no whole checkpoint is left")
    return None, notes


def _load_best(folder: pathlib.Path, last: TrainingState, notes: list[str]) -> TrainingState:
    path = folder / "best.npz"
    try:
        best = TrainingState.load(path)
    except FileNotFoundError:
        _note(notes, f"{path} is missing")
    except CorruptFileError as error:
        _note(notes, f"{error}; it was set aside as {set_aside(path).name}")
    else:
        # A crash between the two files leaves a best.npz that is ahead of last.npz.
        if best.best_epoch >= last.best_epoch:
            return best
        _note(notes, f"{path} is older than last.npz")
    _note(notes, f"The best weights so far are lost; those of epoch {last.epoch} take their place")
    return last


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    warnings.warn(text, RuntimeWarning, stacklevel=4)
