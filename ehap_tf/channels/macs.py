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
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from ehap_tf.channels.rules import (
    Call,
    Effect,
    MacTerm,
    positions,
    weight_of,
)
from ehap_tf.graph import computes_like, operator_kind, operator_symbol

layers = tf_keras.layers
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
# Built-in layers whose weights of several axes scale or look up single numbers.
_BY_ELEMENT = (
    layers.Embedding,
    layers.PReLU,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.Normalization,
)


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
    known = isinstance(layer, _BY_ELEMENT) or all(len(w.shape) < 2 for w in layer.weights)
    if known and _is_ours(layer) and not isinstance(layer, layers.Lambda):
        return Work()
    return Work(uncounted=f"what {type(layer).__name__} multiplies is not known")


def multiplies(*layer_classes: type) -> Callable[[Callable[[Call], Work]], Callable[[Call], Work]]:
    """Makes a function the count of layer classes."""

    def register(function: Callable[[Call], Work]) -> Callable[[Call], Work]:
        _WORK.update(dict.fromkeys(layer_classes, function))
        return function

    return register


@multiplies(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _convolution(call: Call) -> Work:
    return Work({"kernel": _places(call, call.output_shapes[0])})


@multiplies(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(call: Call) -> Work:
    return Work({"kernel": _places(call, call.input_shapes[0])})


@multiplies(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(call: Call) -> Work:
    return Work({"depthwise_kernel": _places(call, call.output_shapes[0])})


@multiplies(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(call: Call) -> Work:
    places = _places(call, call.output_shapes[0])
    return Work({"depthwise_kernel": places, "pointwise_kernel": places})


def _places(call: Call, shape: tuple[int | None, ...]) -> float:
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        shape = (shape[0], *shape[2:], shape[1])
    return positions(shape)


@multiplies(layers.LocallyConnected1D, layers.LocallyConnected2D)
def _locally_connected(call: Call) -> Work:
    """Each position has weights of its own."""
    del call
    return Work({"kernel": 1.0})


@multiplies(layers.Dense)
def _dense(call: Call) -> Work:
    return Work({"kernel": positions(call.output_shapes[0])})


@multiplies(layers.EinsumDense)
def _einsum_dense(call: Call) -> Work:
    layer = call.layer
    whole = _einsum(layer.equation, [call.input_shapes[0], tuple(layer.kernel.shape)])
    return Work({"kernel": whole / math.prod(layer.kernel.shape)})


@multiplies(layers.LSTM, layers.GRU, layers.SimpleRNN)
def _recurrent(call: Call) -> Work:
    steps = _size(call.input_shapes[0][0 if call.layer.time_major else 1])
    return Work({"cell.kernel": steps, "cell.recurrent_kernel": steps})


@multiplies(layers.RNN)
def _recurrent_cells(call: Call) -> Work:
    """A cell, or several on top of each other."""
    cell = call.layer.cell
    stacked = isinstance(cell, layers.StackedRNNCells)
    cells = dict(enumerate(cell.cells)) if stacked else {None: cell}
    kinds = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
    if others := [type(each).__name__ for each in cells.values() if type(each) not in kinds]:
        return Work(uncounted=f"what {', '.join(others)} multiplies is not known")
    steps = _size(call.input_shapes[0][0 if call.layer.time_major else 1])
    names = ["cell" if number is None else f"cell.cells.{number}" for number in cells]
    parts = ("kernel", "recurrent_kernel")
    return Work({f"{name}.{part}": steps for name in names for part in parts})


@multiplies(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def _convolutional_recurrent(call: Call) -> Work:
    """Both kernels are convolved once per step, at the positions of the state."""
    layer = call.layer
    shape = call.output_shapes[0]
    spatial = shape[2:] if layer.return_sequences else shape[1:]
    uses = _size(call.input_shapes[0][1]) * _places(call, (None, *spatial))
    return Work({"cell.kernel": uses, "cell.recurrent_kernel": uses})


@multiplies(layers.Bidirectional)
def _bidirectional(call: Call) -> Work:
    def part(attribute: str) -> Work:
        return work_of(dataclasses.replace(call, layer=getattr(call.layer, attribute))).inside(
            attribute
        )

    return part("forward_layer") + part("backward_layer")


@multiplies(layers.MultiHeadAttention)
def _multi_head_attention(call: Call) -> Work:
    layer = call.layer
    query, value = (_shape(_argument(call, *at)) for at in ((0, "query"), (1, "value")))
    given = _argument(call, 2, "key")
    key = value if given is None else _shape(given)
    attended = math.prod(_size(value[axis]) for axis in layer._attention_axes)
    pairs = positions(query) * attended
    return Work(
        {
            "_query_dense.kernel": positions(query),
            "_key_dense.kernel": positions(key),
            "_value_dense.kernel": positions(value),
            "_output_dense.kernel": positions(query),
        },
        pairs * layer._num_heads * (layer._key_dim + layer._value_dim),
    )


@multiplies(layers.Attention)
def _attention(call: Call) -> Work:
    query, value = call.input_shapes[:2]
    pairs = positions(query) * positions(value)
    return Work(products=pairs * (_size(query[-1]) + _size(value[-1])))


@multiplies(layers.AdditiveAttention)
def _additive_attention(call: Call) -> Work:
    """Each pair of positions is scored by a product with the scale, where there is one."""
    query, value = call.input_shapes[:2]
    pairs = positions(query) * positions(value)
    return Work({"scale": pairs} if call.layer.use_scale else {}, pairs * _size(value[-1]))


@multiplies(layers.Dot)
def _dot(call: Call) -> Work:
    axes = call.layer.axes
    axis = axes if isinstance(axes, int) else axes[0]
    return Work(products=_numbers(call.output_shapes[0]) * _size(call.input_shapes[0][axis]))


def _argument(call: Call, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    args, kwargs = call.node.call_args, call.node.call_kwargs
    if name in kwargs:
        return kwargs[name]
    return args[place] if len(args) > place else default


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "depthwise_conv2d")
_COUNTED = ("einsum", "matmul", "tensordot", *_CONVOLUTIONS)


@multiplies(TFOpLambda)
def _operator(call: Call) -> Work:
    kind = operator_kind(call.layer)
    given = call.operator.arguments if kind in _COUNTED else {}
    if kind == "matmul":
        left, turned = given["a"], given.get("transpose_a") or given.get("adjoint_a")
        inner = _size(_shape(left)[-2 if turned else -1])
        return Work(products=_numbers(call.output_shapes[0]) * inner)
    if kind == "einsum":
        operands = given["inputs"]
        batch = next(n for n, each in enumerate(operands) if tf_keras.backend.is_keras_tensor(each))
        return Work(products=_einsum(given["equation"], list(map(_shape, operands)), batch))
    if kind == "tensordot":
        left, axes = given["a"], given["axes"]
        first = range(-axes, 0) if isinstance(axes, int) else np.atleast_1d(axes[0]).tolist()
        inner = math.prod(_size(_shape(left)[axis]) for axis in first)
        return Work(products=_numbers(call.output_shapes[0]) * inner)
    if kind in _CONVOLUTIONS:
        filters = given.get("filters")
        filters = given["filter"] if filters is None else filters
        size = math.prod(map(_size, _shape(filters)))
        return Work(products=positions(call.output_shapes[0]) * size)
    symbol = operator_symbol(call.layer)
    if symbol.startswith(("linalg.", "signal.", "nn.conv", "nn.separable", "nn.atrous", "keras.")):
        return Work(uncounted=f"what the operator tf.{symbol} multiplies is not known")
    return Work()


@multiplies(SlicingOpLambda)
def _slicing(call: Call) -> Work:
    del call
    return Work()


def _einsum(equation: str, shapes: Sequence[tuple[int | None, ...]], batch: int = 0) -> float:
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


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(tensor.shape) if hasattr(tensor, "shape") else np.shape(tensor)


def _size(length: int | None) -> float:
    return NAN if length is None else float(length)


def _numbers(shape: tuple[int | None, ...]) -> float:
    """How many numbers an example has in a tensor."""
    return math.prod(map(_size, shape[1:]))
