"""One model that loses filters in steps while somebody else trains it."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import RESIDUAL_MODES, ChannelGraph, Flags, trace_channels
from ehap_tf.criteria import check_tolerance, find_criterion
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.plan.schedule import Schedule, Target, removed
from ehap_tf.pruning.plan.selection import (
    check_choice,
    check_fraction,
    check_whole_number,
    cost_of,
    plan_from_flags,
)
from ehap_tf.pruning.plan.units import Floats
from ehap_tf.pruning.while_training.gate_terms import GateTerms, find_gate_terms
from ehap_tf.pruning.while_training.stable_text import stable_text
from ehap_tf.pruning.while_training.training_hook import TrainingHook, optimizer_variables
from ehap_tf.pruning.while_training.training_state import PruningState
from ehap_tf.pruning.while_training.zeroing import not_removable_by_zeros, weight_masks
from ehap_tf.sensitivity import rank_filters

_LOG = logging.getLogger(__name__)

FROM_TRAINING = "taylor_fo"
"""The criterion that training's own gradients give."""

_SCORING = ("estimator", "precision", "probes", "tolerance", "seed")
_COMPUTING = ("batch_size", "strategy", "progress")
"""What `rank_options` may hold: what scores depend on, and what they do not beyond rounding."""


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What is removed, when, and by which scores; the arguments of `PruningCallback`.

    Raises:
        ValueError: an argument is out of range, no criterion has that name, or it needs data;
            `rank_options` holds what is an argument itself, or none of `rank_filters`.
    """

    target: Target
    criterion: str = FROM_TRAINING
    filters_per_step: int = 100
    frequency: int = 30
    residual: str = "union"
    prune_ratio_limit: float = 0.95
    round_to: int = 1
    keep_layers: Sequence[str] = ()
    data: Any = None
    loss: Any = None
    rank_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # Plain values: numpy's do not go into JSON.
        for name in ("filters_per_step", "frequency", "round_to"):
            check_whole_number(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))
        check_fraction("prune_ratio_limit", self.prune_ratio_limit)
        object.__setattr__(self, "prune_ratio_limit", float(self.prune_ratio_limit))
        check_choice("residual", self.residual, RESIDUAL_MODES)
        names = (self.keep_layers,) if isinstance(self.keep_layers, str) else self.keep_layers
        object.__setattr__(self, "keep_layers", tuple(names))
        valid = (*_SCORING, *_COMPUTING)
        if others := [name for name in self.rank_options if name not in valid]:
            raise ValueError(
                f"rank_options must be some of {', '.join(valid)}; criterion, data, loss and "
                f"residual are arguments themselves. Received: {', '.join(map(repr, others))}"
            )
        check_tolerance(self.criterion, self.rank_options.get("tolerance"))
        needs_data = find_criterion(self.criterion).needs_data
        if self.data is None and needs_data and not self.from_training:
            raise ValueError(
                f"data must be given for criterion {self.criterion!r}: training's own gradients "
                f"give {FROM_TRAINING!r} only. Received: None"
            )

    @property
    def from_training(self) -> bool:
        """Whether the scores come from training's own gradients."""
        return self.criterion == FROM_TRAINING and self.data is None

    def to_dict(self) -> dict[str, Any]:
        """What a state depends on, as JSON values."""
        names = ("criterion", "filters_per_step", "frequency", "residual", "prune_ratio_limit")
        return {
            **{name: getattr(self, name) for name in (*names, "round_to")},
            "keep_layers": list(self.keep_layers),
            "target": [self.target.kind, self.target.value],
            "from_training": self.from_training,
            "loss": stable_text(self.loss),
            "rank_options": {
                name: stable_text(self.rank_options[name])
                for name in _SCORING
                if name in self.rank_options
            },
        }


class StepwisePruner:
    """Which filters of a model are there, and the next step.

    Args:
        model: compiled; removed filters are set to zero in it.
        settings: what goes when.

    Attributes:
        graph: the trace of the model.
        alive: layer path -> for each filter whether it stays.
        history: one dict a step: minibatch, and filters removed, parameters and MACs left by then.
        minibatch: minibatches so far.

    Raises:
        ValueError: the target cannot be reached.
    """

    def __init__(self, model: tf_keras.Model, settings: StepSettings) -> None:
        self._model, self._settings = model, settings
        self.graph: ChannelGraph = trace_channels(model, settings.residual)
        stay = not_removable_by_zeros(self.graph)
        self._terms: GateTerms | None = None
        if settings.from_training:
            self._terms = find_gate_terms(model, self.graph)
            stay = {**self._terms.missing, **stay}
        atoms = self.graph.ids.atoms
        self._scored = frozenset(atoms) - frozenset(stay)
        self._schedule = Schedule(
            self.graph,
            settings.target,
            settings.filters_per_step,
            settings.prune_ratio_limit,
            settings.round_to,
            settings.keep_layers,
        )
        self._say_what_stays(stay)
        try:
            self._schedule.require_reachable([layer for layer in atoms if layer in self._scored])
        except ValueError as error:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in stay.items())
            raise ValueError(f"{error}. {reasons}" if reasons else str(error)) from None
        self.alive: dict[str, Flags] = {
            layer: np.ones(len(ids), np.bool_) for layer, ids in atoms.items()
        }
        self.history: tuple[dict[str, float], ...] = ()
        self.minibatch = self._since_step = 0
        self._done = self.reached
        self._hook = self._new_hook()

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self._settings.target.reached(self.graph, self.alive)

    @property
    def stuck(self) -> bool:
        """Whether the limits leave nothing more to remove, short of the target."""
        return self._done and not self.reached

    def plan(self) -> PruningPlan:
        """What is kept now."""
        return plan_from_flags(self.graph, self.alive)

    def require_zeros(self) -> None:
        """Checks that the weights are those of the steps that were taken.

        Raises:
            ValueError: a weight that surgery would cut is not zero.
        """
        # BatchNorm's moving statistics may be anything: where gamma and beta are zero, so is what
        # comes out.
        gone = [
            (weight.name, weight.numpy()[~mask])
            for weight, mask in self._masks()
            if weight.trainable
        ]
        diverged = [name for name, values in gone if not np.isfinite(values).all()]
        if diverged:
            raise ValueError(
                "the weights of removed filters must be zero. Received: values that are not finite "
                f"in {diverged[0]!r} (and {len(diverged) - 1} more variables): training has "
                "diverged. Start again with a lower learning rate"
            )
        living = [name for name, values in gone if values.any()]
        if living:
            raise ValueError(
                f"the weights of removed filters must be zero. Received: others in {living[0]!r} "
                f"(and {len(living) - 1} more variables): weights of before the last steps were "
                "put back, by a callback like EarlyStopping(restore_best_weights=True) or by hand. "
                "Train on without it, restore the schedule's state of that time, or cut all the "
                "same: prune(model, callback.plan())"
            )

    def begin(self) -> None:
        """Takes its place before the optimizer; what is removed is zero from now on."""
        if not self._hook.serves(self._model.optimizer):
            # The model was compiled anew between two fits.
            sums = self._hook.sums()
            self._hook = self._new_hook()
            self._hook.set_sums(*sums)
        self._hook.install()
        if removed(self.alive):
            self._mask()

    def end(self) -> None:
        """Leaves the optimizer as it was."""
        self._hook.remove()

    def count(self, minibatches: int) -> None:
        """So many minibatches have passed: removes filters when it is time."""
        self.minibatch += minibatches
        if self._done:
            return
        self._since_step += minibatches
        if self._since_step >= self._settings.frequency:
            self._step()

    def state(self, epoch: int, with_weights: bool) -> PruningState:
        """Where the schedule stands."""
        squares, minibatches = self._hook.sums()
        weights, optimizer = [], []
        if with_weights:
            weights = self._model.get_weights()
            optimizer = [np.array(v.numpy()) for v in optimizer_variables(self._model.optimizer)]
        return PruningState(
            settings=self._settings.to_dict(),
            alive={layer: flags.copy() for layer, flags in self.alive.items()},
            squares=squares,
            minibatches=minibatches,
            since_step=self._since_step,
            minibatch=self.minibatch,
            history=self.history,
            epoch=epoch,
            weights=weights,
            optimizer=optimizer,
        )

    def take_up(self, state: PruningState) -> None:
        """Goes on from a state, with its weights where it has some.

        Where names differ, layers are those of the state by their order: a model that is built
        again has other names, unless its author gave them.

        Raises:
            ValueError: the state is one of another model or optimizer.
        """
        alive = state.alive
        if alive.keys() != self.alive.keys() and len(alive) == len(self.alive):
            alive = dict(zip(self.alive, alive.values(), strict=True))
        widths = {layer: len(flags) for layer, flags in alive.items()}
        if widths != {layer: len(flags) for layer, flags in self.alive.items()}:
            raise ValueError(
                f"the state must be one of this model. Received: filters {widths}, of another"
            )
        if state.weights:
            if [w.shape for w in state.weights] != [tuple(w.shape) for w in self._model.weights]:
                raise ValueError(
                    "the state must be one of this model. Received: weights of other shapes"
                )
            self._model.optimizer.build(self._model.trainable_variables)
            variables = optimizer_variables(self._model.optimizer)
            shapes = [tuple(variable.shape) for variable in variables]
            if shapes != [value.shape for value in state.optimizer]:
                raise ValueError(
                    "the state must be one of this optimizer. Received: "
                    f"{len(state.optimizer)} variables, of another; {len(shapes)} of "
                    f"{type(self._model.optimizer).__name__} expected. Compile the model as it was"
                )
            self._model.set_weights(state.weights)
            for variable, value in zip(variables, state.optimizer, strict=True):
                variable.assign(value)
        self.alive = {layer: np.array(flags) for layer, flags in alive.items()}
        self.history, self.minibatch = tuple(state.history), state.minibatch
        self._since_step = state.since_step
        self._done = self.reached
        self._hook.set_sums(state.squares, state.minibatches)
        self._hook.keep(self._masks())

    def _step(self) -> None:
        scores = self._scores()
        if scores is None:
            return
        before = removed(self.alive)
        self.alive = self._schedule.next(self.alive, scores)
        self._mask()
        squares, _ = self._hook.sums()
        self._hook.set_sums(np.zeros_like(squares), 0)
        self._since_step = 0
        # Limits may stop it short of the target.
        self._done = self.reached or removed(self.alive) == before
        figures = {
            "minibatch": self.minibatch,
            "filters": removed(self.alive),
            "params": cost_of(self.graph, "params", self.alive),
            "macs": cost_of(self.graph, "macs", self.alive),
        }
        self.history = (*self.history, figures)
        _LOG.info("pruning: %s", figures)

    def _scores(self) -> dict[str, Floats] | None:
        """Layer path -> one score per filter; None while no minibatch has counted."""
        settings = self._settings
        if self._terms is None:
            ranked = rank_filters(
                self._model,
                settings.data,
                settings.loss,
                settings.criterion,
                residual=settings.residual,
                **settings.rank_options,
            )
            return {layer: values for layer, values in ranked.items() if layer in self._scored}
        squares, minibatches = self._hook.sums()
        if not minibatches:
            return None
        groups = {layer: self._terms.groups[layer] for layer in self._scored}
        # Shares that add up to the score of the group.
        members = np.bincount(np.concatenate(list(groups.values())), minlength=len(squares))
        shares = squares / minibatches / np.maximum(members, 1)
        return {layer: shares[numbers] for layer, numbers in groups.items()}

    def _mask(self) -> None:
        self._hook.mask(self._masks())

    def _masks(self) -> Iterator[tuple[tf.Variable, Flags]]:
        return weight_masks(self.graph, self.graph.ids.alive(self.alive))

    def _new_hook(self) -> TrainingHook:
        self._model.optimizer.build(self._model.trainable_variables)
        weights = [weight for weight, _ in self._masks()]
        return TrainingHook(self._model.optimizer, self._terms, weights)

    def _say_what_stays(self, stay: Mapping[str, str]) -> None:
        ids = self.graph.ids
        reasons = "; ".join(
            f"{layer}: {reason}"
            for layer, reason in stay.items()
            if any(ids.frozen_reason(atom) is None for atom in ids.atoms[layer].tolist())
        )
        if reasons:
            warnings.warn(
                f"these layers take no part by themselves: {reasons}. Another criterion with "
                "data= may score them",
                RuntimeWarning,
                stacklevel=5,
            )
