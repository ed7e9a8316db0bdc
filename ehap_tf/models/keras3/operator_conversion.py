"""Operators in functional models: `x * 2` is an operation in Keras 3, a TFOpLambda in tf_keras."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from ehap_tf.graph import is_symbolic, made_by, operator_kind, operator_of
from ehap_tf.models.keras3.detection import is_built_in
from ehap_tf.models.keras3.objects import CannotTranslateError


@dataclasses.dataclass(frozen=True)
class _Rule:
    """An operation of Keras 3 and the TensorFlow function that computes the same.

    Attributes:
        operation: class of the operation.
        function: of TensorFlow.
        ops: name of the function in `keras.ops`.
        attributes: attribute of the operation -> argument of the TensorFlow function.
        arguments: argument of the TensorFlow function -> argument of the `keras.ops` function.
        required: attribute -> the only value that the TensorFlow function stands for.
    """

    operation: str
    function: Any
    ops: str
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_AXIS = {"axis": "axis"}
_REDUCED = {"axis": "axis", "keepdims": "keepdims"}

_RULES = [
    _Rule("Add", tf.math.add, "add"),
    _Rule("Subtract", tf.math.subtract, "subtract"),
    _Rule("Multiply", tf.math.multiply, "multiply"),
    _Rule("TrueDivide", tf.math.truediv, "true_divide"),
    _Rule("Divide", tf.math.truediv, "divide"),
    _Rule("Power", tf.math.pow, "power"),
    _Rule("Maximum", tf.math.maximum, "maximum"),
    _Rule("Minimum", tf.math.minimum, "minimum"),
    _Rule("Greater", tf.math.greater, "greater"),
    _Rule("GreaterEqual", tf.math.greater_equal, "greater_equal"),
    _Rule("Less", tf.math.less, "less"),
    _Rule("LessEqual", tf.math.less_equal, "less_equal"),
    _Rule("Where", tf.where, "where"),
    _Rule("Matmul", tf.linalg.matmul, "matmul"),
    _Rule("Absolute", tf.math.abs, "absolute"),
    _Rule("Abs", tf.math.abs, "abs"),
    _Rule("Negative", tf.math.negative, "negative"),
    _Rule("Square", tf.math.square, "square"),
    _Rule("Sqrt", tf.math.sqrt, "sqrt"),
    _Rule("Rsqrt", tf.math.rsqrt, "rsqrt"),
    _Rule("Exp", tf.math.exp, "exp"),
    _Rule("Log", tf.math.log, "log"),
    _Rule("Sign", tf.math.sign, "sign"),
    _Rule("Floor", tf.math.floor, "floor"),
    _Rule("Tanh", tf.math.tanh, "tanh"),
    _Rule("Relu", tf.nn.relu, "relu"),
    _Rule("Relu6", tf.nn.relu6, "relu6"),
    _Rule("Sigmoid", tf.math.sigmoid, "sigmoid"),
    _Rule("Silu", tf.nn.silu, "silu"),
    _Rule("Selu", tf.nn.selu, "selu"),
    _Rule("Softplus", tf.math.softplus, "softplus"),
    _Rule("Softsign", tf.nn.softsign, "softsign"),
    _Rule("Elu", tf.nn.elu, "elu", required={"alpha": 1.0}),
    _Rule("Gelu", tf.nn.gelu, "gelu", {"approximate": "approximate"}),
    _Rule(
        "LeakyRelu", tf.nn.leaky_relu, "leaky_relu", {"negative_slope": "alpha"},
        {"alpha": "negative_slope"},
    ),
    _Rule("Softmax", tf.nn.softmax, "softmax", _AXIS),
    _Rule("LogSoftmax", tf.nn.log_softmax, "log_softmax", _AXIS),
    _Rule("Mean", tf.math.reduce_mean, "mean", _REDUCED),
    _Rule("Sum", tf.math.reduce_sum, "sum", _REDUCED),
    _Rule("Std", tf.math.reduce_std, "std", _REDUCED),
    _Rule("Var", tf.math.reduce_variance, "var", _REDUCED),
    _Rule("Max", tf.math.reduce_max, "max", _REDUCED, required={"initial": None}),
    _Rule("Min", tf.math.reduce_min, "min", _REDUCED, required={"initial": None}),
    _Rule("Concatenate", tf.concat, "concatenate", _AXIS),
    _Rule("Flip", tf.reverse, "flip", {"axis": "axis"}),
    _Rule("Take", tf.gather, "take", {"axis": "axis"}, {"indices": "indices"}),
    _Rule(
        "Normalize", tf.math.l2_normalize, "normalize", {"axis": "axis", "epsilon": "epsilon"},
        {"epsilon": "epsilon"}, required={"order": 2},
    ),
    _Rule("Stack", tf.stack, "stack", _AXIS),
    _Rule(
        "Repeat", tf.repeat, "repeat", {"repeats": "repeats", "axis": "axis"},
        {"repeats": "repeats"},
    ),
    _Rule("Tile", tf.tile, "tile", {"repeats": "multiples"}, {"multiples": "repeats"}),
    _Rule("ExpandDims", tf.expand_dims, "expand_dims", _AXIS),
    _Rule("Squeeze", tf.squeeze, "squeeze", _AXIS),
    _Rule("Reshape", tf.reshape, "reshape", {"newshape": "shape"}, {"shape": "newshape"}),
    _Rule("Transpose", tf.transpose, "transpose", {"axes": "perm"}, {"perm": "axes"}),
    _Rule("Cast", tf.cast, "cast", {"dtype": "dtype"}),
    _Rule(
        "Clip", tf.clip_by_value, "clip", {"x_min": "clip_value_min", "x_max": "clip_value_max"},
        {"clip_value_min": "x_min", "clip_value_max": "x_max"},
    ),
    _Rule(
        "Pad", tf.pad, "pad", {"pad_width": "paddings", "mode": "mode"},
        {"paddings": "pad_width", "mode": "mode", "constant_values": "constant_values"},
    ),
    _Rule(
        "Split", tf.split, "split", {"indices_or_sections": "num_or_size_splits", "axis": "axis"},
        {"num_or_size_splits": "indices_or_sections"},
    ),
]  # fmt: skip
_OF_OPERATION = {rule.operation: rule for rule in _RULES}
_OF_KIND = {
    operator_kind(TFOpLambda(rule.function, name="kind")): rule for rule in reversed(_RULES)
}


def call_in_tf_keras(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the counterpart of an operation of Keras 3 on tensors of tf_keras.

    Raises:
        CannotTranslateError: naming the operation.
    """
    kind = type(operation).__name__
    rule = _OF_OPERATION.get(kind) if is_built_in(type(operation)) else None
    if kind == "GetItem":
        key = args[1] if len(args) > 1 else kwargs["key"]
        layer = SlicingOpLambda(tf.__operators__.getitem, name=operation.name)
        return layer(args[0], full_key(key, args[0]))
    if kind in ("HardSigmoid", "HardSilu"):
        return _activation(operation, kind)(*args, **kwargs)
    if kind in _POOLS:
        return _pool(operation, kind, args[0])
    if kind == "ReLU":
        return tf_keras.layers.ReLU(
            operation.max_value, operation.negative_slope, operation.threshold, name=operation.name
        )(*args, **kwargs)
    if rule is None:
        raise CannotTranslateError(
            f"the operation {operation.name!r} ({kind}) has no counterpart in tf_keras here. Write "
            "this part of the model with layers"
        )
    args, kwargs, options = _converted(operation, kind, rule, args, kwargs)
    values = [value for value in (*args, *kwargs.values()) if value is not None]
    if kind in ("Relu", "Sigmoid", "Softmax", "Tanh", "Silu"):
        values = values[:1]
    return TFOpLambda(rule.function, name=operation.name)(*_of_one_type(values), **options)


def _converted(
    operation: Any, kind: str, rule: _Rule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """The arguments of a call that stay, and those that the operation's attributes become."""
    for attribute, value in rule.required.items():
        if getattr(operation, attribute, value) != value:
            raise CannotTranslateError(
                f"the operation {operation.name!r} ({kind}), argument {attribute!r}: only {value} "
                f"can be carried over. Received: {getattr(operation, attribute)}"
            )
    options = {new: getattr(operation, old) for old, new in rule.attributes.items()}
    if kind in ("Flip", "Take") and not isinstance(operation.axis, int):
        raise CannotTranslateError(
            f"the operation {operation.name!r} ({kind}), argument 'axis': must be one axis. "
            f"Received: {operation.axis}"
        )
    if kind == "Flip":
        options["axis"] = [operation.axis]
    elif kind == "Take":
        options["indices"] = _places(operation, args, kwargs)
        args, kwargs = args[:1], {}
    elif kind == "Normalize":
        # Of the norm in Keras 3, of its square in TensorFlow.
        options["epsilon"] = (operation.epsilon or tf_keras.backend.epsilon()) ** 2
    elif kind == "Pad":
        options |= _pad_options(operation, args, kwargs)
        args, kwargs = args[:1], {}
    elif kind == "Split" and not isinstance(operation.indices_or_sections, int):
        size = args[0].shape[operation.axis]
        cuts = [0, *operation.indices_or_sections, size]
        options["num_or_size_splits"] = [b - a for a, b in itertools.pairwise(cuts)]
    return args, kwargs, options


def call_in_keras3(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the counterpart of an operator layer of tf_keras on tensors of Keras 3.

    Raises:
        CannotTranslateError: naming the layer.
    """
    import keras

    if operator_kind(layer) == "getitem":
        key = args[1] if len(args) > 1 else kwargs["slice_spec"]
        outputs = args[0][_dict_to_slice(key)]
        return _named(outputs, layer.name)
    rule = _OF_KIND.get(operator_kind(layer))
    if rule is None:
        raise CannotTranslateError(
            f"layer {layer.name!r} (tf.{layer.symbol}) has no counterpart in Keras 3 here. Write "
            "this part of the model with layers"
        )
    given = operator_of(layer, args, kwargs).arguments
    inputs, options = [], {}
    for position, (name, value) in enumerate(given.items()):
        if name in rule.arguments:
            options[rule.arguments[name]] = value
        elif name in ("axis", "keepdims", "dtype", "approximate"):
            options[name] = value
        elif position == 0 or name in ("x", "y", "b"):
            inputs.append(value)
        else:
            raise CannotTranslateError(
                f"layer {layer.name!r} (tf.{layer.symbol}), argument {name!r}: cannot be carried "
                f"over. Received: {value!r}"
            )
    if rule.operation == "Gelu":
        options.setdefault("approximate", False)  # Keras 3 has the other default.
    if rule.operation == "Normalize":
        options["epsilon"] = float(options.get("epsilon", 1e-12)) ** 0.5
    if rule.operation == "Flip":
        if len(options["axis"]) != 1:
            raise CannotTranslateError(
                f"layer {layer.name!r} (tf.{layer.symbol}), argument 'axis': must be one axis. "
                f"Received: {options['axis']}"
            )
        (options["axis"],) = options["axis"]
    if rule.operation == "Pad":
        options["mode"] = str(options.get("mode", "constant")).lower()
        if options["mode"] != "constant":
            options.pop("constant_values", None)
    sizes = options.get("indices_or_sections")
    if isinstance(sizes, (list, tuple)):
        whole = inputs[0].shape[options.get("axis", 0)]
        sizes = [size if size >= 0 else whole - sum(sizes) + size for size in sizes]
        options["indices_or_sections"] = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return _named(getattr(keras.ops, rule.ops)(*inputs, **options), layer.name)


def is_operator(layer: Any) -> bool:
    """Whether a layer of tf_keras stands for a TensorFlow function."""
    return isinstance(layer, TFOpLambda)


def _of_one_type(values: list[Any]) -> list[Any]:
    """Whole numbers beside floating tensors as floating ones: TensorFlow takes the first's type."""
    floating = any(getattr(value, "dtype", None) and value.dtype.is_floating for value in values)
    return [float(value) if floating and type(value) is int else value for value in values]


def _activation(operation: Any, kind: str) -> Any:
    from ehap_tf.models.keras3.activations import OF_KERAS3

    name = {"HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu"}[kind]
    return tf_keras.layers.Activation(OF_KERAS3[name], name=operation.name)


_POOLS = {"AveragePool": "AveragePooling", "MaxPool": "MaxPooling"}


def _pool(operation: Any, kind: str, x: Any) -> Any:
    layer_class = getattr(tf_keras.layers, f"{_POOLS[kind]}{len(x.shape) - 2}D")
    return layer_class(
        operation.pool_size,
        operation.strides,
        operation.padding,
        data_format=operation.data_format,
        name=operation.name,
    )(x)


def _places(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The indices of a Take, counted from the beginning, as plain numbers."""
    indices = args[1] if len(args) > 1 else kwargs["indices"]
    if is_symbolic(indices):
        raise CannotTranslateError(
            f"the operation {operation.name!r} (Take), argument 'indices': must be constant. "
            "Received: a tensor of the model"
        )
    places = np.asarray(indices)
    return np.where(places < 0, places + args[0].shape[operation.axis], places).tolist()


def _pad_options(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    widths = [list(pair) for pair in operation.pad_width]
    if len(widths) == 1:
        widths *= len(args[0].shape)
    options: dict[str, Any] = {"paddings": widths, "mode": operation.mode.upper()}
    constant = kwargs.get("constant_values", args[1] if len(args) > 1 else None)
    if constant is not None:
        options["constant_values"] = constant
    return options


def _named(outputs: Any, name: str) -> Any:
    """Gives the operation that made the outputs the name that it has in tf_keras."""
    node, _ = made_by(tf.nest.flatten(outputs)[0])
    node.operation.name = name
    return outputs


def full_key(key: Any, x: Any) -> list[Any]:
    """The key of a slice as tf_keras saves it: slices as dicts, and an ellipsis written out."""
    parts = list(key) if isinstance(key, (list, tuple)) else [key]
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if places:
        taken = sum(part is not None for part in parts) - 1
        parts[places[0] : places[0] + 1] = [slice(None)] * (len(x.shape) - taken)
    return [_slice_to_dict(part) for part in parts]


def _slice_to_dict(value: Any) -> Any:
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    return value


def _dict_to_slice(key: Any) -> Any:
    if isinstance(key, (list, tuple)):
        return tuple(_dict_to_slice(part) for part in key)
    if isinstance(key, dict) or type(key).__name__ == "_DictWrapper":
        return slice(key["start"], key["stop"], key["step"])
    return key
