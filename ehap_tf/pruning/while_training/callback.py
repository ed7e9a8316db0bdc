"""Pruning while training, as a callback of somebody's own `model.fit`."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

from ehap_tf.channels import Flags
from ehap_tf.models import require_functional
from ehap_tf.models.keras3 import is_keras3_model
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.plan.schedule import Target, removed
from ehap_tf.pruning.repair import repair
from ehap_tf.pruning.surgery.slim_model import prune
from ehap_tf.pruning.while_training.pruner import FROM_TRAINING, StepSettings, StepwisePruner
from ehap_tf.pruning.while_training.training_hook import require_supported
from ehap_tf.pruning.while_training.training_state import PruningState


class PruningCallback(tf_keras.callbacks.Callback):
    """Removes filters in steps while a model trains (Molchanov et al. 2019, arXiv 1906.10771).

    With `criterion="taylor_fo"` and no `data`, the scores come from the gradients that training
    computes anyway: the gradient on a gate behind each filter's BatchNorm (behind the filter
    itself where there is none) is squared a minibatch and averaged over minibatches. That costs no
    second pass: some sums over weights per step. Every `frequency` minibatches the
    `filters_per_step` filters of lowest score go, until the target is met; averages then start
    anew. A filter that is gone is zero wherever surgery would cut, its momentum is cleared, and it
    gets no gradient any more. What is minimised counts, a regularisation penalty included.

    Other criteria, or `data`, make `rank_filters` rank the weights of the moment at every step:
    seconds to minutes each time, as `rank_filters` takes.

    Example:
        >>> pruning = ehap.PruningCallback(target_macs=0.6, filters_per_step=100, frequency=30)
        >>> model.fit(train_data, epochs=10, callbacks=[pruning])
        >>> slim = pruning.finalize()

    To resume after a crash, give `checkpoint`. At the end of every epoch the file gets weights,
    optimizer (its learning rate included) and schedule; the next `fit` takes them up. Callbacks
    that change any of these at the end of an epoch, such as `ReduceLROnPlateau`, stand before this
    one in the list; what they remember themselves is theirs to keep.
        >>> pruning = ehap.PruningCallback(target_macs=0.6, checkpoint="pruning.npz")
        >>> model.fit(train_data, epochs=10, initial_epoch=pruning.epoch, callbacks=[pruning])

    The model is one of tf_keras, compiled with an optimizer of `tf_keras.optimizers`, on one
    replica. Filters that cannot be scored or removed this way stay, with a warning that says why.
    After a `fit` that was interrupted in a notebook, filters that are gone stay zero in every later
    one; `on_train_end()` gives the optimizer back.

    Args:
        criterion: "taylor_fo"; or, ranked at every step, a criterion of `rank_filters`.
        target_macs: share of the multiply-accumulates to keep.
        target_params: share of the parameters to keep.
        target_filters: number of filters to remove. Give exactly one of the three.
        filters_per_step: filters that go at a time.
        frequency: minibatches between two steps.
        residual: as in `plan_pruning`. Filters that go together are scored together: their
            gradients are added before they are squared.
        prune_ratio_limit: as in `plan_pruning`.
        round_to: as in `plan_pruning`.
        keep_layers: as in `plan_pruning`.
        data: ranked on at every step, `(x, y)` arrays or a batched `tf.data.Dataset`; None takes
            training's own gradients.
        loss: of the ranking on `data`; None takes the compiled one.
        rank_options: further arguments of `rank_filters`, such as `{"probes": 16}`; none of those
            that stand here.
        checkpoint: a file that keeps the whole state, for resuming.

    Raises:
        ValueError: an argument is out of range, no criterion has that name, or it needs data;
            `rank_options` holds what is an argument itself, or none of `rank_filters`.
    """

    _supports_tf_logs = True  # spares fit the conversion of its figures at every step

    def __init__(
        self,
        criterion: str = FROM_TRAINING,
        *,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_filters: int | None = None,
        filters_per_step: int = 100,
        frequency: int = 30,
        residual: str = "union",
        prune_ratio_limit: float = 0.95,
        round_to: int = 1,
        keep_layers: Sequence[str] = (),
        data: Any = None,
        loss: Any = None,
        rank_options: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self._settings = StepSettings(
            target=Target.of(target_macs, target_params, target_filters),
            criterion=criterion,
            filters_per_step=filters_per_step,
            frequency=frequency,
            residual=residual,
            prune_ratio_limit=prune_ratio_limit,
            round_to=round_to,
            keep_layers=keep_layers,
            data=data,
            loss=loss,
            rank_options=dict(rank_options or {}),
        )
        self._epoch, self._last_batch = 0, -1
        self._pruner: StepwisePruner | None = None
        self._pending: PruningState | None = None
        self._checkpoint = None if checkpoint is None else pathlib.Path(checkpoint)
        if self._checkpoint is not None and self._checkpoint.exists():
            self.restore(PruningState.load(self._checkpoint))

    # What a caller asks ------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Whole epochs trained, those before a restart included: the next `initial_epoch`."""
        return self._epoch

    @property
    def alive(self) -> dict[str, Flags]:
        """Layer path -> for each filter whether it stays."""
        return {layer: flags.copy() for layer, flags in self._begun.alive.items()}

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self._begun.reached

    @property
    def history(self) -> tuple[dict[str, float], ...]:
        """One dict a step: minibatch, and filters removed, parameters and MACs left by then."""
        return self._begun.history

    def plan(self) -> PruningPlan:
        """What is kept now, as a plan of the model in training."""
        return self._begun.plan()

    def finalize(
        self, *, dense: tf_keras.Model | None = None, images: Any = None, repair_images: int = 512
    ) -> tf_keras.Model:
        """The slim model, with the outputs of the masked one in training. It is not compiled.

        BatchNorm's moving statistics lag behind a step by as many minibatches as their momentum
        says: where training ends soon after the last one, `recalibrate` the slim model, or give
        `dense` to `repair` it. The model in training has lost its filters already: the outputs that
        repair is to restore are those of a copy from before.

        Args:
            dense: a copy of the model from before filters went, such as `load_model` gives; None
                repairs nothing.
            images: to repair on, as `repair` takes them.
            repair_images: how many of them; 0 repairs nothing.

        Raises:
            ValueError: `dense` comes without `images`, or is another network. Or weights of before
                a step were put back, as `EarlyStopping` with `restore_best_weights` does: removed
                filters are alive in them. Or training has diverged.
        """
        self._begun.require_zeros()
        if not self.reached:
            settings = self._settings
            why = (
                f"the limits allow no more: raise prune_ratio_limit={settings.prune_ratio_limit:g},"
                f" or lower round_to={settings.round_to}, or name fewer keep_layers"
                if self._begun.stuck
                else f"training ended after {self._begun.minibatch} minibatches, with "
                f"{settings.filters_per_step} filters every {settings.frequency}: train for more "
                "epochs, raise filters_per_step or lower frequency"
            )
            warnings.warn(
                f"the target is not met, {removed(self._begun.alive)} filters are removed: {why}",
                RuntimeWarning,
                stacklevel=2,
            )
        slim = prune(self.model, self.plan())
        if dense is None or not repair_images:
            return slim
        if images is None:
            raise ValueError("images must be given to repair for dense. Received: None")
        return repair(slim, dense, self.plan(), images, repair_images)

    def state(self, with_weights: bool = False) -> PruningState:
        """Where the schedule stands; a value that `restore` takes, of this or a later process.

        Args:
            with_weights: also the model's weights and the optimizer's variables, as the file of
                `checkpoint` has them. Without, they are the caller's to keep.
        """
        return self._begun.state(self._epoch, with_weights)

    def restore(self, state: PruningState) -> None:
        """Goes back or on to `state`, with its weights where it has some.

        A callback that knows no model yet takes the state up in its first `fit`.

        Raises:
            ValueError: the state was taken under other settings, or is one of another model or
                optimizer.
        """
        if dict(state.settings) != self._settings.to_dict():
            raise ValueError(
                f"the state must be one of these settings: {self._settings.to_dict()}. Received: "
                f"{dict(state.settings)}; remove the checkpoint to start again"
            )
        if self._pruner is None:
            self._pending = state
        else:
            self._pruner.take_up(state)
        self._epoch = state.epoch

    # What fit calls ----------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Takes the model.

        Raises:
            TypeError: a model of Keras 3, or a subclassed one.
            ValueError: another model than before.
        """
        if is_keras3_model(model):
            raise TypeError(
                "PruningCallback works in the fit of tf_keras. Received: a Keras 3 model; train "
                "its twin: twin = ehap_tf.to_tf_keras(model), compile it with an optimizer of "
                "tf_keras, fit it, and take ehap_tf.to_keras3(callback.finalize())"
            )
        require_functional(model)
        if self._pruner is not None and model is not self.model:
            raise ValueError(
                "a PruningCallback serves one model. Received: another model; make a new callback"
            )
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes its place before the optimizer, and takes up a state that was restored.

        Raises:
            ValueError: the target cannot be reached, or the optimizer is not supported.
        """
        require_supported(self.model)
        if self._pruner is None:
            self._pruner = StepwisePruner(self.model, self._settings)
        if self._pending is not None:
            self._pruner.take_up(self._pending)
            self._pending = None
        self._pruner.begin()
        # The training step may have been compiled without the hook.
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Batches are counted anew."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Removes filters when it is time."""
        # With steps_per_execution several minibatches have passed.
        passed, self._last_batch = batch - self._last_batch, batch
        self._begun.count(passed)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the checkpoint."""
        self._epoch = epoch + 1
        if self._checkpoint is not None:
            self.state(with_weights=True).save(self._checkpoint)

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the optimizer and the training step as they were."""
        self._begun.end()
        self.model.train_function = None

    @property
    def _begun(self) -> StepwisePruner:
        if self._pruner is None:
            raise ValueError(
                "the callback knows no model yet: give it to model.fit(..., callbacks=[callback])"
            )
        return self._pruner
