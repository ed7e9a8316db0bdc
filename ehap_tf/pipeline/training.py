"""Training that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import time
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import ImageDataset, evaluation_batches, steps_per_epoch, training_batches
from ehap_tf.files import CorruptFileError, set_aside
from ehap_tf.pipeline.checkpoint import TrainingState
from ehap_tf.pipeline.training_step import (
    WarmupCosine,
    build_optimizer,
    build_step,
    optimizer_variables,
)
from ehap_tf.progress import ProgressCallback, no_progress

STEPS_BETWEEN_CHECKS = 10


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """How a model is trained: SGD, a warm-up, a cosine.

    Attributes:
        epochs: passes over the training split; 0 leaves the model as it is.
        learning_rate: its highest value.
        weight_decay: factor of each kernel in its gradient.
        batch_size: images a step, over all devices.
        momentum: of SGD.
        nesterov: whether the momentum looks ahead.
        warmup_epochs: how long the learning rate rises; a fraction is allowed.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    momentum: float = 0.9
    nesterov: bool = True
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0. Received: {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {self.batch_size}")
        for name in ("learning_rate", "weight_decay", "momentum", "warmup_epochs"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0. Received: {value}")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training came to.

    Attributes:
        epochs: whole epochs trained, those of earlier calls included.
        best_epoch: after which of them validation accuracy was highest; 0 without epochs.
        best_accuracy: that validation accuracy, the one of the weights now in the model.
        history: one dict an epoch: epoch, loss, accuracy, validation_accuracy, learning_rate,
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


def evaluate(model: tf_keras.Model, batches: tf.data.Dataset) -> float:
    """Top-1 accuracy of `model` in inference mode over a finite stream of (images, labels).

    Raises:
        ValueError: the stream is empty.
    """
    return _Evaluator(model)(batches)


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
) -> TrainingResult:
    """Trains `model` in place and leaves it with the weights of its best validation epoch.

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
        strategy: distributes each batch; a model made outside its scope is copied into it.
        freeze_batch_norm_after: from this epoch on (counted from 0), BatchNorm layers keep their
            statistics, gamma and beta.

    Raises:
        FloatingPointError: the loss is NaN or infinite; the last good checkpoint is kept.
        ValueError: the checkpoint in `directory` is of another training, or the training split is
            smaller than a batch.
    """
    folder = pathlib.Path(directory)
    steps = steps_per_epoch(dataset, recipe.batch_size)
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    settings = {
        "dataset": dataset.name,
        "examples": len(dataset.train),
        "seed": seed,
        "freeze_batch_norm_after": freeze_batch_norm_after,
        "recipe": dataclasses.asdict(recipe),
    }
    trainer = _Trainer(model, recipe, steps, strategy)
    state, notes = _resume(folder, settings, trainer) if resume else (None, [])
    if state is None:
        state = trainer.state(0, 0, -1.0, (), settings)
    best = state
    if 0 < state.best_epoch < state.epoch:
        best = _load_best(folder, state, notes)
    first_epoch = state.epoch
    stream = training_batches(
        dataset, recipe.batch_size, seed, first_epoch, max(1, recipe.epochs - first_epoch)
    )
    batches = iter(strategy.experimental_distribute_dataset(stream))
    validation = evaluation_batches(dataset.validation, dataset, 256)
    try:
        for epoch in range(first_epoch, recipe.epochs):
            began = time.monotonic()
            if freeze_batch_norm_after is not None and epoch >= freeze_batch_norm_after:
                trainer.freeze_batch_norm()
            figures = trainer.run_epoch(batches, epoch, progress, folder)
            figures["validation_accuracy"] = trainer.evaluate(validation)
            figures["seconds"] = time.monotonic() - began
            is_best = figures["validation_accuracy"] > state.best_accuracy
            state = trainer.state(
                epoch + 1,
                epoch + 1 if is_best else state.best_epoch,
                figures["validation_accuracy"] if is_best else state.best_accuracy,
                (*state.history, figures),
                settings,
            )
            # best.npz first: a crash in between repeats this epoch and writes the same again.
            state.save(*([folder / "best.npz"] if is_best else []), folder / "last.npz")
            best = state if is_best else best
            progress((epoch + 1) * steps, recipe.epochs * steps, figures)
        if best.epoch != state.epoch:
            trainer.load(best)
    finally:
        trainer.finish(model)
    accuracy = best.best_accuracy if best.epoch else evaluate(model, validation)
    return TrainingResult(
        state.epoch, best.best_epoch, accuracy, state.history, first_epoch, tuple(notes)
    )


class _Evaluator:
    """Accuracy of one model, compiled once."""

    def __init__(self, model: tf_keras.Model) -> None:
        @tf.function(reduce_retracing=True)
        def count(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            guesses = tf.argmax(model(images, training=False), axis=-1, output_type=tf.int64)
            return tf.math.count_nonzero(guesses == tf.cast(labels, tf.int64))

        self._count = count

    def __call__(self, batches: tf.data.Dataset) -> float:
        right, examples = 0, 0
        for images, labels in batches:
            right += int(self._count(images, labels))
            examples += int(labels.shape[0])
        if not examples:
            raise ValueError("There is nothing to evaluate on: the data set is empty")
        return right / examples


class _Trainer:
    """A model with its optimizer and its compiled step."""

    def __init__(
        self,
        model: tf_keras.Model,
        recipe: TrainingRecipe,
        steps: int,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self._recipe, self._steps, self._strategy = recipe, steps, strategy
        total = recipe.epochs * steps
        self._schedule = WarmupCosine(
            recipe.learning_rate, total, round(recipe.warmup_epochs * steps)
        )
        with strategy.scope():
            created_here = strategy.extended.variable_created_in_scope
            if not all(created_here(variable) for variable in model.variables):
                model = _copied(model)
            self._optimizer = build_optimizer(
                model, self._schedule, recipe.momentum, recipe.nesterov
            )
        self._model = model
        self._frozen: list[tf_keras.layers.Layer] = []
        self._build_step()
        self.evaluate = _Evaluator(model)

    def _build_step(self) -> None:
        recipe = self._recipe
        self._step = build_step(
            self._model, self._optimizer, recipe.weight_decay, recipe.batch_size, self._strategy
        )

    def freeze_batch_norm(self) -> None:
        """Keeps every BatchNorm layer as it is from now on."""
        if self._frozen:
            return
        self._frozen = [
            layer
            for layer in self._model.submodules
            if isinstance(layer, tf_keras.layers.BatchNormalization) and layer.trainable
        ]
        for layer in self._frozen:
            layer.trainable = False
        if self._frozen:
            self._build_step()

    def finish(self, model: tf_keras.Model) -> None:
        """Gives `model` the weights, and every layer its trainability back."""
        for layer in self._frozen:
            layer.trainable = True
        if model is not self._model:
            model.set_weights(self._model.get_weights())

    def run_epoch(
        self, batches: Any, epoch: int, progress: ProgressCallback, folder: pathlib.Path
    ) -> dict[str, float]:
        """One epoch; returns its figures so far."""
        total = self._recipe.epochs * self._steps
        loss_sum, right = 0.0, 0
        pending: list[tuple[tf.Tensor, tf.Tensor]] = []
        for step in range(self._steps):
            pending.append(self._step(*next(batches)))
            if len(pending) < STEPS_BETWEEN_CHECKS and step + 1 < self._steps:
                continue
            # Reading a loss waits for the device, so several are read at a time.
            loss_sum += sum(float(loss) for loss, _ in pending)
            right += sum(int(count) for _, count in pending)
            pending.clear()
            done = epoch * self._steps + step + 1
            rate = float(self._schedule(done - 1))
            if not math.isfinite(loss_sum):
                raise FloatingPointError(_not_finite(epoch, step + 1, rate, folder))
            figures = {
                "epoch": epoch + 1,
                "loss": loss_sum / (step + 1),
                "accuracy": right / ((step + 1) * self._recipe.batch_size),
                "learning_rate": rate,
            }
            if step + 1 < self._steps:
                progress(done, total, figures)
        return figures

    def state(
        self,
        epoch: int,
        best_epoch: int,
        best_accuracy: float,
        history: tuple[dict[str, float], ...],
        settings: dict[str, Any],
    ) -> TrainingState:
        """The present state, copied."""
        optimizer = [np.array(v.numpy()) for v in optimizer_variables(self._optimizer)]
        weights = self._model.get_weights()
        return TrainingState(
            epoch, weights, optimizer, best_epoch, best_accuracy, history, settings
        )

    def load(self, state: TrainingState) -> None:
        """Goes back to `state`."""
        self._model.set_weights(state.weights)
        variables = optimizer_variables(self._optimizer)
        for variable, value in zip(variables, state.optimizer, strict=True):
            variable.assign(value)


def _copied(model: tf_keras.Model) -> tf_keras.Model:
    # Layers wrapped for quantization are found by name in a scope of TFMOT's, whose import takes
    # seconds: only where there are some.
    scope: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if any(type(layer).__name__.startswith("QuantizeWrapper") for layer in model.layers):
        from ehap_tf.quantization import quantization_scope

        scope = quantization_scope()
    with scope:
        copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _resume(
    folder: pathlib.Path, settings: dict[str, Any], trainer: _Trainer
) -> tuple[TrainingState | None, list[str]]:
    notes: list[str] = []
    for name in ("last.npz", "best.npz"):
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
        trainer.load(state)
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


def _not_finite(epoch: int, step: int, rate: float, folder: pathlib.Path) -> str:
    kept = "there is no checkpoint yet"
    if (folder / "last.npz").exists():
        kept = f"the last good checkpoint is {folder / 'last.npz'}"
    return (
        f"The loss became NaN or infinite in epoch {epoch + 1}, by step {step} (learning rate "
        f"{rate:g}); {kept}. A lower learning rate or a longer warm-up helps"
    )
