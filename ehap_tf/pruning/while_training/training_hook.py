"""Between an optimizer and its gradients: reads them for scores, keeps removed filters at zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import Flags
from ehap_tf.pruning.while_training.gate_terms import GateTerms


class TrainingHook:
    """Sees every gradient that is applied in training, in the graph of the training step.

    Removed entries get no gradient, which with their momentum at zero keeps them where they are.
    The squares of the gradients on gates are added up over minibatches; a minibatch with a gradient
    that is not finite, as dynamic loss scaling brings about, is left out.

    Args:
        optimizer: the compiled one, built.
        terms: how gradients on gates follow from those on weights; None adds nothing up.
        weights: those that `keep` and `mask` will be given.
    """

    def __init__(
        self, optimizer: Any, terms: GateTerms | None, weights: Iterable[tf.Variable]
    ) -> None:
        self._optimizer = optimizer
        self._terms = terms
        # All of them now: a training step that is compiled already would not see later ones.
        self._keeps = {
            id(weight): tf.Variable(tf.ones(weight.shape, tf.bool), trainable=False)
            for weight in weights
        }
        count = terms.count if terms else 0
        self._squares = tf.Variable(tf.zeros([count], tf.float64), trainable=False)
        self._minibatches = tf.Variable(0, dtype=tf.int64, trainable=False)

    def install(self) -> None:
        """Puts itself before `optimizer.apply_gradients`; in the place of an earlier hook."""
        self.remove()
        apply = self._optimizer.apply_gradients

        def apply_gradients(grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
            return apply(list(self._seen(list(grads_and_vars))), *args, **kwargs)

        # Keras' own __setattr__ would look for a hyperparameter.
        object.__setattr__(self._optimizer, "apply_gradients", apply_gradients)

    def serves(self, optimizer: Any) -> bool:
        """Whether this is a hook of that optimizer."""
        return self._optimizer is optimizer

    def remove(self) -> None:
        """Gives the optimizer its own method back."""
        self._optimizer.__dict__.pop("apply_gradients", None)

    def keep(self, masks: Iterable[tuple[tf.Variable, Flags]]) -> None:
        """Lets gradients through to the entries with a flag, and to no others."""
        for weight, mask in masks:
            self._keeps[id(weight)].assign(mask)

    def mask(self, masks: Iterable[tuple[tf.Variable, Flags]]) -> None:
        """Sets removed entries of weights and of their momentum to zero; they stay so."""
        masks = list(masks)
        self.keep(masks)
        for weight, mask in masks:
            for variable in (weight, *self._slots(weight)):
                variable.assign(np.where(mask, variable.numpy(), 0))

    def sums(self) -> tuple[np.ndarray, int]:
        """The squares so far, one per group, and over how many minibatches."""
        return self._squares.numpy(), int(self._minibatches.numpy())

    def set_sums(self, squares: np.ndarray, minibatches: int) -> None:
        """Goes back to earlier sums, or to zero."""
        self._squares.assign(squares)
        self._minibatches.assign(minibatches)

    def _seen(self, pairs: list[tuple[Any, tf.Variable]]) -> Iterator[tuple[Any, tf.Variable]]:
        if self._terms is not None:
            self._add_up({id(weight): g for g, weight in pairs if g is not None}, self._terms)
        for gradient, weight in pairs:
            if gradient is None or id(weight) not in self._keeps:
                yield gradient, weight
            else:
                keeps = self._keeps[id(weight)]
                gradient = tf.convert_to_tensor(gradient)
                yield tf.where(keeps, gradient, tf.zeros((), gradient.dtype)), weight

    def _add_up(self, gradient_of: Mapping[int, Any], terms: GateTerms) -> None:
        squares = tf.square(tf.cast(terms.gradient(gradient_of), tf.float64))
        finite = tf.reduce_all(tf.math.is_finite(squares))
        self._squares.assign_add(tf.where(finite, squares, tf.zeros_like(squares)))
        self._minibatches.assign_add(tf.cast(finite, tf.int64))

    def _slots(self, weight: tf.Variable) -> list[tf.Variable]:
        """What the optimizer remembers of a weight: momentum, second moment, average."""
        inner = inner_optimizer(self._optimizer)
        # Keras keeps a list a kind of slot, in the order of `_index_dict`.
        index_of = getattr(inner, "_index_dict", {})
        index = index_of.get(inner._var_key(weight)) if index_of else None
        if index is None:
            return []
        return [
            kind[index]
            for kind in vars(inner).values()
            if isinstance(kind, list)
            and len(kind) == len(index_of)
            and isinstance(kind[index], tf.Variable)
            and kind[index].shape == weight.shape
        ]


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside a loss-scaling one, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def optimizer_variables(optimizer: Any, listed_only: bool = False) -> list[tf.Variable]:
    """All that an optimizer remembers from step to step, loss scale included.

    Args:
        optimizer: built.
        listed_only: leaves out what Keras does not list: the learning rate, and the running product
            of Nadam.
    """
    inner = inner_optimizer(optimizer)
    variables = list(inner.variables)
    listed = {id(variable) for variable in variables}
    if not listed_only:
        variables += [
            variable
            for variable in vars(inner).values()
            if isinstance(variable, tf.Variable) and id(variable) not in listed
        ]
    if isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
        scale = optimizer._loss_scale
        if optimizer.dynamic:
            variables += [scale._current_loss_scale, scale._counter]
    return variables


def require_supported(model: tf_keras.Model) -> None:
    """Checks that the compiled optimizer can be looked into.

    Raises:
        ValueError: a legacy optimizer, Ftrl, or several replicas.
    """
    inner = inner_optimizer(model.optimizer)
    if not isinstance(inner, tf_keras.optimizers.Optimizer):
        raise ValueError(
            "the model must be compiled with an optimizer of tf_keras.optimizers (not of its "
            f"legacy module). Received: {type(inner).__module__}.{type(inner).__name__}"
        )
    if isinstance(inner, tf_keras.optimizers.Ftrl):
        raise ValueError(
            "the optimizer must keep weights in the weights: Ftrl makes them anew from its "
            "accumulators, which cannot be cleared for a removed filter. Received: Ftrl"
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            "the model must be trained on one replica: gradients are read before replicas add "
            f"theirs up. Received: a strategy of {replicas} replicas"
        )
