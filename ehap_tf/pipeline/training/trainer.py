"""A model with its optimizer, taken through epochs; where it stands can be saved and restored."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import is_batch_norm
from ehap_tf.models import Readout, copy_model
from ehap_tf.pipeline.training.checkpoint import TrainingState
from ehap_tf.pipeline.training.evaluation import Evaluator
from ehap_tf.pipeline.training.training_step import (
    WarmupCosine,
    build_optimizer,
    build_step,
)
from ehap_tf.progress import ProgressCallback
from ehap_tf.pruning import optimizer_variables

STEPS_BETWEEN_CHECKS = 10


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """How a model is trained: SGD, a warm-up, a cosine.

    Attributes:
        epochs: passes over the training split; 0 leaves the model as it is.
        learning_rate: its highest value.
        weight_decay: factor of each kernel in its gradient.
        batch_size: images per step, over all devices.
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


class Trainer:
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
        self._given = model
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
        # Of the given model: one on several devices would be asked for its BatchNorm statistics
        # in every batch, which are on other machines.
        self.evaluate = Evaluator(self._given, Readout.of(self._given).threshold)

    def _build_step(self) -> None:
        recipe = self._recipe
        self._step = build_step(
            self._model, self._optimizer, recipe.weight_decay, recipe.batch_size, self._strategy
        )

    def freeze_batch_norm(self) -> None:
        """Keeps the statistics of every BatchNorm layer from now on (see `fit`)."""
        if self._frozen:
            return
        self._frozen = [
            layer for layer in self._model.submodules if is_batch_norm(layer) and layer.trainable
        ]
        for layer in self._frozen:
            layer.trainable = False
        if self._frozen:
            self._build_step()

    def unfreeze(self) -> None:
        """Gives every layer its trainability back."""
        for layer in self._frozen:
            layer.trainable = True

    def hand_over(self) -> None:
        """Gives the model that the trainer was made with the weights of its copy, if it has one."""
        if self._given is not self._model:
            self._given.set_weights(self._model.get_weights())

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
                raise FloatingPointError(
                    _not_finite(
                        "The loss", f"by step {step + 1} (learning rate {rate:g})", epoch, folder
                    )
                )
            figures = {
                "epoch": epoch + 1,
                "loss": loss_sum / (step + 1),
                "accuracy": right / ((step + 1) * self._recipe.batch_size),
                "learning_rate": rate,
            }
            if step + 1 < self._steps:
                progress(done, total, figures)
        self._require_finite_weights(epoch, folder)
        return figures

    def _require_finite_weights(self, epoch: int, folder: pathlib.Path) -> None:
        """The loss alone does not tell: a NaN can be hidden behind a ReLU, or in statistics."""
        for weight in self._model.weights:
            if weight.dtype.is_floating and not np.isfinite(weight.numpy()).all():
                raise FloatingPointError(
                    _not_finite(f"The weight {weight.name}", "", epoch, folder)
                )

    def state(
        self,
        epoch: int,
        best_epoch: int,
        best_accuracy: float,
        history: tuple[dict[str, float], ...],
        settings: dict[str, Any],
    ) -> TrainingState:
        """The present state, copied."""
        optimizer = [
            np.array(v.numpy()) for v in optimizer_variables(self._optimizer, listed_only=True)
        ]
        weights = self._model.get_weights()
        return TrainingState(
            epoch, weights, optimizer, best_epoch, best_accuracy, history, settings
        )

    def load(self, state: TrainingState) -> None:
        """Goes back to `state`."""
        self._model.set_weights(state.weights)
        for variable, value in zip(self._optimizer_variables(), state.optimizer, strict=True):
            variable.assign(value)

    def _optimizer_variables(self) -> list[tf.Variable]:
        """Those that files of checkpoints have held from the first version on."""
        return optimizer_variables(self._optimizer, listed_only=True)


def _copied(model: tf_keras.Model) -> tf_keras.Model:
    if not any("QuantizeWrapper" in type(layer).__name__ for layer in model.layers):
        return copy_model(model)
    # Layers wrapped for quantization are found by name in a scope of TFMOT's, whose import takes
    # seconds.
    from ehap_tf.quantization import quantization_scope

    with quantization_scope():
        copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _not_finite(what: str, when: str, epoch: int, folder: pathlib.Path) -> str:
    kept = "there is no checkpoint yet"
    if (folder / "last.npz").exists():
        kept = f"the last good checkpoint is {folder / 'last.npz'}"
    when = f"in epoch {epoch + 1}{', ' if when else ''}{when}"
    advice = "A lower learning rate or a longer warm-up helps"
    return f"{what} became NaN or infinite {when}; {kept}. {advice}"
