"""A functional model as a flat list of steps that can be run one by one, from stored tensors.

Nested models are opened, at each of their calls; shared layers have one step for each call.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from ehap_tf.graph import arguments, in_training, is_nested_model, layer_paths, propagate

Key = int
"""Names one tensor that a program computes, or one of its inputs."""

Values = dict[Key, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One computation of one layer.

    Attributes:
        number: steps of a program are numbered in the order of computation.
        path: of the layer.
        node: the Keras node of the call.
        training: the call is in training mode, which the model itself demands.
        inputs, outputs: the tensors, as Keras flattens them.
    """

    number: int
    path: str
    node: Any
    training: bool
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]

    @property
    def layer(self) -> tf_keras.layers.Layer:
        """The layer that is called."""
        return self.node.layer

    def run(self, values: Values) -> None:
        """Computes the outputs, in inference mode unless the call says otherwise."""
        args, kwargs = arguments(self.node, [values[key] for key in self.inputs])
        layer = self.layer
        if getattr(layer, "_expects_training_arg", False):
            args, kwargs = layer._call_spec.set_arg_value(
                "training", self.training, args, kwargs, True
            )
        outputs = tf.nest.flatten(layer(*args, **kwargs))
        values.update(zip(self.outputs, outputs, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The steps of a model.

    Attributes:
        model: what is computed.
        inputs: the tensors that are given, in the order of `model.inputs`.
        outputs: those that the model returns.
        steps: in an order in which they can be run.
    """

    model: tf_keras.Model
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    steps: tuple[Step, ...]

    def calls(self) -> dict[str, list[Step]]:
        """Layer path -> its steps."""
        found: dict[str, list[Step]] = {}
        for step in self.steps:
            found.setdefault(step.path, []).append(step)
        return found

    def readers(self) -> dict[Key, list[Step | None]]:
        """For each tensor the steps that read it; None stands for the model's output."""
        found: dict[Key, list[Step | None]] = collections.defaultdict(list)
        for step in self.steps:
            for key in step.inputs:
                found[key].append(step)
        for key in self.outputs:
            found[key].append(None)
        return found


def unrolled(model: tf_keras.Model, keys: Iterator[int]) -> Program:
    """The steps of a Functional or Sequential model.

    Args:
        model: the model.
        keys: fresh numbers; two programs that are run side by side share one iterator.
    """
    paths, numbers = layer_paths(model), itertools.count()
    steps: list[Step] = []

    def follow(model: tf_keras.Model, inputs: Sequence[Key], training: bool) -> list[Key]:
        def visit(node: Any, given: list[Key]) -> list[Key]:
            trains = in_training(node, training)
            if is_nested_model(node.layer):
                return follow(node.layer, given, trains)
            made = [next(keys) for _ in tf.nest.flatten(node.outputs)]
            path = paths[id(node.layer)]
            steps.append(Step(next(numbers), path, node, trains, tuple(given), tuple(made)))
            return made

        return propagate(model, inputs, visit)

    inputs = tuple(next(keys) for _ in model.inputs)
    outputs = tuple(follow(model, inputs, False))
    return Program(model, inputs, outputs, tuple(steps))


@dataclasses.dataclass
class Stop:
    """A place where a walk stops to look at tensors.

    Attributes:
        before: steps to run first, whose tensors are kept as long as somebody needs them.
        beside: further steps that the tensors of this stop need and that come again later, when
            what this stop changes is changed.
        wanted: the tensors to look at.
        needed_later: which tensors are to be kept after the stop.
    """

    before: list[Step]
    beside: list[Step]
    wanted: tuple[Key, ...]
    needed_later: set[Key]


def plan_stops(
    programs: Iterable[Program], stops: Sequence[tuple[Collection[Key], Collection[Key]]]
) -> list[Stop]:
    """The shortest walk through programs that makes the tensors of some stops.

    Args:
        programs: what computes the tensors.
        stops: for each the tensors that must be there, and those that it looks at as well, which
            may depend on what it changes. The former of one stop must not depend on what later
            ones change.
    """
    makers: dict[Key, tuple[int, Step]] = {}
    for place, program in enumerate(programs):
        for step in program.steps:
            makers.update((key, (place, step)) for key in step.outputs)
    done: set[Step] = set()
    planned = []
    for first, all_of_them in stops:
        before = _missing(first, makers, done)
        done.update(before)
        beside = _missing(all_of_them, makers, done)
        planned.append(Stop(before, beside, tuple(all_of_them), set()))
    needed: set[Key] = set()
    for stop in reversed(planned):
        stop.needed_later = set(needed)
        needed.update(stop.wanted)
        needed.update(key for step in (*stop.before, *stop.beside) for key in step.inputs)
    return planned


def _missing(
    wanted: Collection[Key], makers: Mapping[Key, tuple[int, Step]], done: Collection[Step]
) -> list[Step]:
    """The steps that are still to run, in order."""
    found: dict[Step, tuple[int, int]] = {}
    waiting = list(wanted)
    while waiting:
        place, step = makers.get(waiting.pop(), (0, None))
        if step is not None and step not in done and step not in found:
            found[step] = (place, step.number)
            waiting.extend(step.inputs)
    return sorted(found, key=found.__getitem__)
