"""Pruning while training, as a callback of somebody's own `model.fit`."""

from __future__ import annotations

import logging
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels import ChannelGraph, Flags, trace_channels
from ehap_tf.models import require_functional
from ehap_tf.models.keras3 import is_keras3_model
from ehap_tf.pruning.gate_terms import GateTerms, find_gate_terms
from ehap_tf.pruning.plan import PruningPlan
from ehap_tf.pruning.schedule import Schedule, Target, removed
from ehap_tf.pruning.selection import cost_of, plan_from_flags
from ehap_tf.pruning.surgery import prune
from ehap_tf.pruning.training_hook import TrainingHook, optimizer_variables, require_supported
from ehap_tf.pruning.training_state import PruningState
from ehap_tf.pruning.units import Floats
from ehap_tf.pruning.zeroing import not_removable_by_zeros, weight_masks
from ehap_tf.sensitivity import rank_filters
from ehap_tf.sensitivity.criteria import find_criterion

_LOG = logging.getLogger(__name__)

FROM_TRAINING = "taylor_fo"
"""The criterion that training's own gradients give."""


class PruningCallback(tf_keras.callbacks.Callback):
    """Removes filters in steps while a model trains (Molchanov et al. 2019, arXiv 1906.10771).

    With `criterion="taylor_fo"` and no `data`, the scores come from the gradients that training
    computes anyway: the gradient on a gate behind each filter's BatchNorm (behind the filter
    itself where there is none) is squared a minibatch and averaged over minibatches. That costs no
    second pass: some sums over weights a step. Every `frequency` minibatches the
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
    optimizer and schedule; the next `fit` takes them up:
        >>> pruning = ehap.PruningCallback(target_macs=0.6, checkpoint="pruning.npz")
        >>> model.fit(train_data, epochs=10, initial_epoch=pruning.epoch, callbacks=[pruning])

    The model is one of tf_keras, compiled with an optimizer of `tf_keras.optimizers`, on one
    replica. Filters that cannot be scored or removed this way stay, with a warning that says why.

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
        rank_options: further arguments of `rank_filters`, such as `{"probes": 16}`.
        checkpoint: a file that keeps the whole state, for resuming.

    Raises:
        ValueError: an argument is out of range, or the criterion needs data.
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
        self._target = _checked_target(target_macs, target_params, target_filters)
        for name, value in (("filters_per_step", filters_per_step), ("frequency", frequency)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1. Received: {value}")
        self._from_training = criterion == FROM_TRAINING and data is None
        if data is None and not self._from_training and find_criterion(criterion).needs_data:
            raise ValueError(
                f"data must be given for criterion {criterion!r}: training's own gradients give "
                f"{FROM_TRAINING!r} only. Received: None"
            )
        self._criterion, self._data, self._loss = criterion, data, loss
        self._rank_options = dict(rank_options or {})
        self._limits = {
            "prune_ratio_limit": prune_ratio_limit,
            "round_to": round_to,
            "keep_layers": tuple(keep_layers),
        }
        self._residual, self._frequency = residual, frequency
        self._filters_per_step = filters_per_step
        self._checkpoint = None if checkpoint is None else pathlib.Path(checkpoint)
        self._pending: PruningState | None = None
        if self._checkpoint is not None and self._checkpoint.exists():
            self.restore(PruningState.load(self._checkpoint))
        self._hook: TrainingHook | None = None
        self._schedule: Schedule | None = None
        self._graph: ChannelGraph | None = None
        self._terms: GateTerms | None = None

    # What a caller asks ------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Whole epochs trained, those before a restart included: the next `initial_epoch`."""
        return self._pending.epoch if self._pending else getattr(self, "_epoch", 0)

    @property
    def alive(self) -> dict[str, Flags]:
        """Layer path -> for each filter whether it stays."""
        return {layer: flags.copy() for layer, flags in self._begun()._alive.items()}

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self._target.reached(self._begun()._traced, self._alive)

    @property
    def history(self) -> tuple[dict[str, float], ...]:
        """One dict a step: minibatch, and filters removed, parameters and MACs left by then."""
        return self._begun()._history

    def plan(self) -> PruningPlan:
        """What is kept now, as a plan of the model in training."""
        return plan_from_flags(self._begun()._traced, self._alive)

    def finalize(self) -> tf_keras.Model:
        """The slim model, with the outputs of the masked one in training. It is not compiled.

        BatchNorm's moving statistics lag behind a step by as many minibatches as their momentum
        says: where training ends soon after the last one, `recalibrate` the slim model.
        """
        if not self.reached:
            warnings.warn(
                f"the target is not met: training ended before it. {removed(self._alive)} filters "
                "are removed",
                RuntimeWarning,
                stacklevel=2,
            )
        return prune(self.model, self.plan())

    def state(self, with_weights: bool = False) -> PruningState:
        """Where the schedule stands; a value that `restore` takes, of this or a later process.

        Args:
            with_weights: also the model's weights and the optimizer's variables, as the file of
                `checkpoint` has them. Without, they are the caller's to keep.
        """
        self._begun()
        squares, minibatches = self._hook.sums() if self._hook else (np.zeros(0), 0)
        weights, optimizer = [], []
        if with_weights:
            weights = self.model.get_weights()
            optimizer = [np.array(v.numpy()) for v in optimizer_variables(self.model.optimizer)]
        return PruningState(
            settings=self._settings(),
            alive=self.alive,
            squares=squares,
            minibatches=minibatches,
            since_step=self._since_step,
            minibatch=self._minibatch,
            history=self._history,
            epoch=self._epoch,
            weights=weights,
            optimizer=optimizer,
        )

    def restore(self, state: PruningState) -> None:
        """Lets the next `fit` go on from `state`.

        Raises:
            ValueError: the state was taken under other settings.
        """
        if dict(state.settings) != self._settings():
            raise ValueError(
                f"the state must be one of these settings: {self._settings()}. Received: "
                f"{dict(state.settings)}; remove the checkpoint to start again"
            )
        self._pending = state

    # What fit calls ----------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Takes the model.

        Raises:
            TypeError: a model of Keras 3, or a subclassed one.
        """
        if is_keras3_model(model):
            raise TypeError(
                "PruningCallback works in the fit of tf_keras. Received: a Keras 3 model; train "
                "its twin: twin = ehap_tf.to_tf_keras(model), compile it with an optimizer of "
                "tf_keras, fit it, and take ehap_tf.to_keras3(callback.finalize())"
            )
        require_functional(model)
        if self._graph is not None and model is not self.model:
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
        if self._graph is None:
            self._begin()
        elif self._hook is not None and not self._hook.serves(self.model.optimizer):
            # The model was compiled anew between two fits.
            sums = self._hook.sums()
            self._hook = self._new_hook(self._graph)
            self._hook.set_sums(*sums)
        if self._pending is not None:
            self._take_up(self._pending)
            self._pending = None
        assert self._hook is not None and self._graph is not None
        self._hook.install()
        if removed(self._alive):
            self._hook.mask(weight_masks(self._graph, self._graph.ids.alive(self._alive)))
        # The training step may have been compiled without the hook.
        self.model.make_train_function(force=True)
        self._last_batch = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Batches are counted anew."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Removes filters when it is time."""
        # With steps_per_execution several minibatches have passed.
        passed, self._last_batch = batch - self._last_batch, batch
        self._minibatch += passed
        if self._done:
            return
        self._since_step += passed
        if self._since_step >= self._frequency:
            self._step()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the checkpoint."""
        self._epoch = epoch + 1
        if self._checkpoint is not None:
            self.state(with_weights=True).save(self._checkpoint)

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the optimizer and the training step as they were."""
        if self._hook is not None:
            self._hook.remove()
        self.model.train_function = None

    # The steps ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        graph = trace_channels(self.model, self._residual)
        kept = not_removable_by_zeros(graph)
        if self._from_training:
            self._terms = find_gate_terms(self.model, graph)
            kept = {**self._terms.missing, **kept}
        layers = [
            layer
            for layer in graph.ids.atoms
            if layer not in kept and (self._terms is None or layer in self._terms.groups)
        ]
        schedule = Schedule(
            graph,
            self._target,
            self._filters_per_step,
            **self._limits,  # type: ignore[arg-type]
        )
        self._say_what_stays(graph, kept)
        try:
            schedule.require_reachable(layers)
        except ValueError as error:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in kept.items())
            raise ValueError(f"{error}. {reasons}" if reasons else str(error)) from None
        self._scored = frozenset(layers)
        self._alive = {name: np.ones(len(ids), np.bool_) for name, ids in graph.ids.atoms.items()}
        self._history: tuple[dict[str, float], ...] = ()
        self._since_step = self._minibatch = self._epoch = 0
        self._done = self._target.reached(graph, self._alive)
        self._hook = self._new_hook(graph)
        self._graph, self._schedule = graph, schedule

    def _new_hook(self, graph: ChannelGraph) -> TrainingHook:
        self.model.optimizer.build(self.model.trainable_variables)
        weights = [weight for weight, _ in weight_masks(graph, graph.ids.alive(self._alive))]
        return TrainingHook(self.model.optimizer, self._terms, weights)

    def _say_what_stays(self, graph: ChannelGraph, kept: Mapping[str, str]) -> None:
        free = {
            layer: reason
            for layer, reason in kept.items()
            if any(
                graph.ids.frozen_reason(atom) is None for atom in graph.ids.atoms[layer].tolist()
            )
        }
        if free:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in free.items())
            warnings.warn(
                f"these layers take no part by themselves: {reasons}. Another criterion with "
                "data= may score them",
                RuntimeWarning,
                stacklevel=4,
            )

    def _take_up(self, state: PruningState) -> None:
        assert self._hook is not None and self._graph is not None
        widths = {layer: len(flags) for layer, flags in state.alive.items()}
        if widths != {layer: len(flags) for layer, flags in self._alive.items()}:
            raise ValueError(
                f"the state must be one of this model. Received: filters {widths}, of another"
            )
        if state.weights:
            self.model.set_weights(state.weights)
            variables = optimizer_variables(self.model.optimizer)
            for variable, value in zip(variables, state.optimizer, strict=True):
                variable.assign(value)
        self._alive = {layer: np.array(flags) for layer, flags in state.alive.items()}
        self._history, self._epoch = tuple(state.history), state.epoch
        self._since_step, self._minibatch = state.since_step, state.minibatch
        self._done = self._target.reached(self._graph, self._alive)
        self._hook.set_sums(state.squares, state.minibatches)

    def _step(self) -> None:
        assert self._schedule is not None and self._graph is not None and self._hook is not None
        scores = self._scores()
        if scores is None:
            return
        before = removed(self._alive)
        self._alive = self._schedule.next(self._alive, scores)
        self._hook.mask(weight_masks(self._graph, self._graph.ids.alive(self._alive)))
        squares, _ = self._hook.sums()
        self._hook.set_sums(np.zeros_like(squares), 0)
        self._since_step = 0
        stuck = removed(self._alive) == before
        self._done = stuck or self._target.reached(self._graph, self._alive)
        figures = {
            "minibatch": self._minibatch,
            "filters": removed(self._alive),
            "params": cost_of(self._graph, "params", self._alive),
            "macs": cost_of(self._graph, "macs", self._alive),
        }
        self._history = (*self._history, figures)
        _LOG.info("pruning: %s", figures)

    def _scores(self) -> dict[str, Floats] | None:
        """Layer path -> one score a filter; None while no minibatch has counted."""
        assert self._hook is not None
        if self._terms is None:
            ranked = rank_filters(
                self.model,
                self._data,
                self._loss,
                self._criterion,
                **{"residual": self._residual, **self._rank_options},
            )
            return {layer: values for layer, values in ranked.items() if layer in self._scored}
        squares, minibatches = self._hook.sums()
        if not minibatches:
            return None
        # Shares that add up to the score of the group.
        members = np.bincount(
            np.concatenate([self._terms.groups[layer] for layer in self._scored]),
            minlength=len(squares),
        )
        shares = squares / minibatches / np.maximum(members, 1)
        return {layer: shares[self._terms.groups[layer]] for layer in self._scored}

    # The rest ----------------------------------------------------------------------------------

    @property
    def _traced(self) -> ChannelGraph:
        assert self._graph is not None
        return self._graph

    def _begun(self) -> PruningCallback:
        if self._graph is None:
            raise ValueError(
                "the callback knows no model yet: give it to model.fit(..., callbacks=[callback])"
            )
        return self

    def _settings(self) -> dict[str, Any]:
        """All that a state depends on, as JSON values."""
        return {
            "criterion": self._criterion,
            "from_training": self._from_training,
            "target": [self._target.kind, self._target.value],
            "filters_per_step": self._filters_per_step,
            "frequency": self._frequency,
            "residual": self._residual,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self._limits.items()
            },
        }


def _checked_target(
    target_macs: float | None, target_params: float | None, target_filters: int | None
) -> Target:
    given = {
        kind: value
        for kind, value in (
            ("macs", target_macs),
            ("params", target_params),
            ("filters", target_filters),
        )
        if value is not None
    }
    if len(given) != 1:
        raise ValueError(
            "give exactly one of target_macs, target_params and target_filters. Received: "
            f"{ {f'target_{kind}': value for kind, value in given.items()} }"
        )
    ((kind, value),) = given.items()
    if kind != "filters" and not 0 < value <= 1:
        raise ValueError(f"target_{kind} must be in (0, 1], a fraction to keep. Received: {value}")
    if kind == "filters" and not (isinstance(value, int) and value >= 0):
        raise ValueError(f"target_filters must be a whole number of at least 0. Received: {value}")
    return Target(kind, value)
