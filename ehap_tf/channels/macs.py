"""The multiply-accumulates of one call of a layer, of whatever class, pruned or kept whole.

A weight costs its size times the number of positions that it is used at, so that the count follows
the weight's shape when surgery cuts it. Products of two tensors (attention, `tf.matmul`) stand
beside. Sums, comparisons and scales of single numbers are not counted, as everywhere in the field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels.rules import Call, Effect, MacTerm, positions, weight_of
from ehap_tf.graph import computes_like

NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call multiplies for one example.

    Attributes:
        uses: name of a weight -> at how many positions each of its numbers is multiplied; NaN
            where that is not fixed.
        products: multiply-accumulates between tensors, which no removal changes.
        uncounted: why there are more than these, where that is so.
    """

    uses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    products: float = 0.0
    uncounted: str | None = None

    def inside(self, wrapper: str) -> Work:
        """The work of a layer that is called by another, which has it as its attribute."""
        uses = {f"{wrapper}.{name}": count for name, count in self.uses.items()}
        return Work(uses, self.products, self.uncounted)

    def __add__(self, other: Work) -> Work:
        uses = {**self.uses, **other.uses}
        return Work(uses, self.products + other.products, self.uncounted or other.uncounted)


_WORK: dict[type, Callable[[Call], Work]] = {}


def macs_of(call: Call, effect: Effect) -> tuple[tuple[MacTerm, ...], str | None]:
    """The multiply-accumulates of a call, and why there are more than can be counted.

    Args:
        call: of a layer.
        effect: of its rule, for the channels that the axes of weights carry; one that states its
            `macs` is believed.
    """
    if effect.macs is not None:
        return tuple(effect.macs), None
    work = _of_own_layer(call, effect) or work_of(call)
    terms = []
    for name, uses in work.uses.items():
        shape = weight_of(call.layer, name).shape
        axes = effect.weights.get(name, (None,) * len(shape))
        fixed = math.prod(int(n) for n, ids in zip(shape, axes, strict=True) if ids is None)
        terms.append(MacTerm(uses * fixed, tuple(ids for ids in axes if ids is not None)))
    if work.products:
        terms.append(MacTerm(work.products, ()))
    return tuple(terms), work.uncounted


def _of_own_layer(call: Call, effect: Effect) -> Work | None:
    """Of a class with a rule of a user's own: its filters are used once for each of its outputs."""
    if _is_ours(call.layer) or not effect.weights:
        return None
    filters = weight_of(call.layer, effect.filters[0]) if effect.filters else None
    if any(weight is not filters and len(weight.shape) > 1 for weight in call.layer.weights):
        return None
    return Work({effect.filters[0]: positions(call.output_shapes[0])} if effect.filters else {})


def _is_ours(layer: tf_keras.layers.Layer) -> bool:
    return type(layer).__module__.startswith(("tf_keras.", "ehap_tf."))


def work_of(call: Call) -> Work:
    """What a call multiplies, by the class of its layer."""
    layer = call.layer
    for layer_class in type(layer).__mro__:
        if layer_class in _WORK:
            if computes_like(layer, layer_class):
                return _WORK[layer_class](call)
            break
    known = _is_ours(layer) and not isinstance(layer, tf_keras.layers.Lambda)
    if known and all(len(weight.shape) < 2 for weight in layer.weights):
        return Work()
    return Work(uncounted=f"what {type(layer).__name__} multiplies is not known")


def multiplies(*layer_classes: type) -> Callable[[Callable[[Call], Work]], Callable[[Call], Work]]:
    """Makes a function the count of layer classes; it stands by the channel rule of the class."""

    def register(function: Callable[[Call], Work]) -> Callable[[Call], Work]:
        _WORK.update(dict.fromkeys(layer_classes, function))
        return function

    return register


def places_of(call: Call, shape: tuple[int | None, ...]) -> float:
    """How many positions a tensor of the call has, wherever its channels stand."""
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        shape = (shape[0], *shape[2:], shape[1])
    return positions(shape)


def einsum(equation: str, shapes: Sequence[tuple[int | None, ...]], batch: int = 0) -> float:
    """The product of the sizes of all letters but that of the batch; dots stand for the rest.

    Args:
        equation: as in `tf.einsum`.
        shapes: of the operands.
        batch: number of the operand whose first axis is the batch.
    """
    operands = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, float] = {}
    names_of = []
    for letters, shape in zip(operands, shapes, strict=True):
        before, dots, after = letters.partition("...")
        middle = len(shape) - len(before) - len(after) if dots else 0
        names = [*before, *(f".{place}" for place in range(middle, 0, -1)), *after]
        names_of.append(names)
        for name, size in zip(names, shape, strict=True):
            # An axis of size 1 among the dots is spread over that of another operand.
            if size is None:
                sizes.setdefault(name, NAN)
            elif not sizes.get(name, NAN) >= size:
                sizes[name] = size
    return math.prod(size for name, size in sizes.items() if name != names_of[batch][0])


def shape_of(tensor: Any) -> tuple[int | None, ...]:
    """Of a tensor or a constant."""
    return tuple(tensor.shape) if hasattr(tensor, "shape") else np.shape(tensor)


def size_of(length: int | None) -> float:
    """Of an axis; NaN where it is not fixed."""
    return NAN if length is None else float(length)


def numbers_in(shape: tuple[int | None, ...]) -> float:
    """How many numbers an example has in a tensor."""
    return math.prod(map(size_of, shape[1:]))
