"""What a layer does to channel ids: the form of a rule, and the registry of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tf_keras

from ehap_tf.channels.ids import ChannelIds, Flags, Ids
from ehap_tf.graph import Operator, computes_like, operator_of


@dataclasses.dataclass(frozen=True)
class MacTerm:
    """Multiply-accumulates of one call: `factor` times the number of alive ids in each axis."""

    factor: float
    axes: tuple[Ids, ...]

    def count(self, alive: Flags) -> float:
        """Multiply-accumulates of one example when `alive` marks the ids that are there.

        NaN where `factor` is: the number of positions is not fixed.
        """
        product = self.factor
        for ids in self.axes:
            product *= int(alive[ids].sum())
        return product


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one call of a layer does, as its rule describes it.

    Attributes:
        inputs: per input tensor the ids that the layer wants to see on its channel axis, aligned
            with the ids that the tensor has. They differ where a channel that is missing has to be
            filled in with zeros.
        outputs: per output tensor the ids of its channel axis.
        weights: attribute name of a weight -> for each axis the ids that it carries, or None. A
            weight that the layer can do without is an attribute that is None then. That of a layer
            inside has dots: "cell.kernel".
        filters: the weight that holds the layer's filters, one of `weights`, and the axis that
            counts them: ("kernel", -1). Its ids there are those of `call.ids.filters`. Whoever
            scores, removes or repairs filters takes them from here. None where there are none.
        config: constructor argument -> ids whose alive number it holds, or a function of the
            alive flags that computes it.
        arguments: for operator layers, a function `(alive, args, kwargs) -> (args, kwargs)` that
            changes arguments which speak of channels.
        macs: multiply-accumulates of one example, a sum of terms; None leaves the count to the
            layer's class and the shapes of its weights.
        implantable: positions of a filter's kernel, where it could be replaced by a 1x1 filter at
            the kernel's centre; None where it could not.
        preserves_zero: a channel that is zero in the inputs is zero in the outputs.
        pass_through: the layer vanishes from the slim model; its input is its output.
        note: a remark for the report, for instance why channels are frozen.
    """

    inputs: Sequence[Ids]
    outputs: Sequence[Ids]
    weights: Mapping[str, tuple[Ids | None, ...]] = dataclasses.field(default_factory=dict)
    filters: tuple[str, int] | None = None
    config: Mapping[str, Ids | Callable[[Flags], Any]] = dataclasses.field(default_factory=dict)
    arguments: Callable[[Flags, Any, Any], Any] | None = None
    macs: Sequence[MacTerm] | None = None
    implantable: int | None = None
    preserves_zero: bool = False
    pass_through: bool = False
    note: str | None = None

    @property
    def bound(self) -> bool:
        """The layer's weights or arguments depend on which channels live."""
        return bool(self.weights or self.config)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer, as a rule sees it.

    Attributes:
        layer: the layer.
        path: its name, with the names of the models it is nested in before it: "backbone/conv1".
        ids: the table of channel ids.
        inputs: per input tensor the ids of its channel axis.
        input_shapes: per input tensor its shape, batch axis first, None where unknown.
        output_shapes: the same for the outputs.
        residual: "union" or "tied": what sums do to the channels that they line up.
        shared: the layer is called in several places.
        node: the Keras node of the call, for rules that look at non-tensor arguments.
    """

    layer: tf_keras.layers.Layer
    path: str
    ids: ChannelIds
    inputs: tuple[Ids, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    residual: str
    shared: bool
    node: Any

    @property
    def operator(self) -> Operator:
        """What an operator layer is called with."""
        return operator_of(self.layer, self.node.call_args, self.node.call_kwargs)


Rule = Callable[[Call], Effect]

_RULES: dict[type, Rule] = {}


def register_channel_rule(layer_class: type, rule: Rule | None = None) -> Any:
    """Teaches the channel graph what a layer class does to channels.

    A rule is a function from a `Call` to an `Effect`. It holds for subclasses too, unless they
    have a rule of their own or compute something else: a subclass that overrides `call`, `build`
    or `convolution_op` is unknown. Without a rule a layer is unknown: the channels that it touches
    are frozen, which is always right and never slim. What a rule returns is checked against the
    layer, at each call. See "Layers of your own" in the documentation.

    Args:
        layer_class: the class of the layer.
        rule: the rule; when absent, the function is a decorator.

    Example:
        >>> from ehap_tf.channels import Effect, register_channel_rule
        >>> @register_channel_rule(MyScale)  # y = x * self.scale, one scale per channel
        ... def my_scale(call):
        ...     (ids,) = call.inputs
        ...     return Effect([ids], [ids], weights={"scale": (ids,)}, preserves_zero=True)
    """
    decorate = rule_for(layer_class)
    return decorate if rule is None else decorate(rule)


def rule_for(*layer_classes: type) -> Callable[[Rule], Rule]:
    """Registers a rule for several classes."""

    def decorate(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(layer_classes, rule))
        return rule

    return decorate


def rule_of(layer: tf_keras.layers.Layer) -> Rule:
    """The rule of the layer's class or of the base that it computes the same as, else `unknown`."""
    for layer_class in type(layer).__mro__:
        if layer_class in _RULES:
            return _RULES[layer_class] if computes_like(layer, layer_class) else unknown
    return unknown


def weight_of(layer: tf_keras.layers.Layer, name: str) -> Any:
    """The weight that a rule names: an attribute, with dots that of a layer inside, or None.

    Raises:
        AttributeError: there is no such attribute.
    """
    found: Any = layer
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def unknown(call: Call) -> Effect:
    """Freezes every channel that an unknown layer touches."""
    name = type(call.layer).__name__
    closed = getattr(call.layer, "stays_closed", None)
    if closed is not None:
        return frozen(call, f"{name} {call.path!r} is not taken apart: {closed}")
    return frozen(
        call,
        f"no channel rule for {name} (layer {call.path!r}); "
        "ehap_tf.register_channel_rule can add one",
    )


def frozen(call: Call, reason: str) -> Effect:
    """The effect of a layer that is left as it is: all channels in and out of it stay."""
    wanted = [call.ids.settle(ids, reason) for ids in call.inputs]
    for ids in wanted:
        call.ids.freeze(ids, reason)
    outputs = [call.ids.constants(channels(shape), reason) for shape in call.output_shapes]
    return Effect(wanted, outputs, preserves_zero=True, note=reason)


def one_input(rule: Rule) -> Rule:
    """The rule of layers with one input: a call with further tensors, such as a mask, freezes."""

    @functools.wraps(rule)
    def checked(call: Call) -> Effect:
        return rule(call) if len(call.inputs) == 1 else _with_several(call)

    return checked


def _with_several(call: Call) -> Effect:
    return frozen(call, f"{call.path!r} is called with {len(call.inputs)} tensors")


def pass_on(call: Call, **effect: Any) -> Effect:
    """The effect of a layer that treats every channel alone and alike, without weights."""
    if len(call.inputs) != 1:
        return _with_several(call)
    (ids,) = call.inputs
    if not effect.get("preserves_zero", False):
        ids = call.ids.settle(ids, f"{call.path!r} maps a zero channel to non-zero")
    return Effect([ids], [ids], **effect)


def channels(shape: tuple[int | None, ...]) -> int:
    """The number of channels of a tensor; 0 for one with no channel axis or one of any size."""
    return int(shape[-1] or 0) if len(shape) > 1 else 0


def positions(shape: tuple[int | None, ...]) -> float:
    """The number of positions of a tensor without its batch and channel axes; NaN if unknown."""
    product = 1.0
    for size in shape[1:-1]:
        product *= float("nan") if size is None else size
    return product
