"""Any functional model as one flat graph of the layers that quantization knows.

Nested models are inlined, a layer that is called more than once gets a copy for each call (in the
file each call is an operator with scales of its own), activation functions become layers, and
composite layers their parts. Weights are copied; everything computes in float32.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from ehap_tf.graph import (
    input_layer_names,
    is_identity_at_inference,
    is_plain_batch_norm,
    nodes_in_order,
    operator_kind,
    operator_of,
    replay,
    training_argument,
)
from ehap_tf.models import require_functional
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.arithmetic_operators import ARITHMETIC_OPERATORS
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.flat_graph import rebuild
from ehap_tf.quantization.integer_rules.layer_rules import batch_norm
from ehap_tf.quantization.integer_rules.moving_operators import MOVING_OPERATORS
from ehap_tf.quantization.integer_rules.reducing_operators import REDUCING_OPERATORS
from ehap_tf.quantization.integer_rules.rewriting import has_rule_of_the_users, rewrite_layer


def canonical_model(model: tf_keras.Model, keep_float: Sequence[str] = ()) -> tf_keras.Model:
    """Returns a flat float32 twin of `model`, with weights of its own.

    Outputs agree with those of `model` to rounding. Layer names are kept, with a number where two
    would be the same; parts of a composite layer get its name and a suffix. A BatchNorm called with
    `training=False` is not trainable.

    Args:
        model: Functional or Sequential.
        keep_float: names of layers, or patterns as of files, that become an `EhapFloatLayer`. The
            name of one in a nested model has that of the model before it: "head/dense".

    Raises:
        TypeError: `model` is not Functional or Sequential, or a model inside it is not.
        ValueError: a layer has its channels first, is called in training mode, averages what a
            mask leaves, or is quantized already; a pattern fits no layer.
    """
    require_functional(model)
    _require_no_mask(model)
    kept = KeptInFloat(keep_float)
    flat = rebuild(model, Canonicalizer(GraphBuilder(input_layer_names(model)), kept=kept))
    kept.require_all_used()
    return flat


class KeptInFloat:
    """Which layers stay in float because the caller says so.

    Args:
        patterns: of their names.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._used: set[str] = set()
        self._names: list[str] = []

    def __call__(self, path: str) -> bool:
        """Whether the layer of that name stays in float."""
        self._names.append(path)
        fitting = [p for p in self._patterns if fnmatch.fnmatchcase(path, p)]
        self._used.update(fitting)
        return bool(fitting)

    def require_all_used(self) -> None:
        """Raises ValueError where a pattern has fitted no layer."""
        unused = [pattern for pattern in self._patterns if pattern not in self._used]
        if unused:
            raise ValueError(
                f"keep_float must fit names of layers: {', '.join(self._names)}. "
                f"Received: {unused[0]!r}"
            )


class Canonicalizer:
    """The visitor of `canonical_model`.

    Args:
        builder: makes the layers.
        training: what the nested model, whose calls these are, is called with; None for neither.
        kept: says which layers stay in float.
        path: what the names of the layers get before them: those of the models around.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        training: bool | None = None,
        kept: Callable[[str], bool] = lambda path: False,
        path: str = "",
    ) -> None:
        self._builder = builder
        self._training = training
        self._kept = kept
        self._path = path

    def __call__(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what a call of `layer` becomes."""
        if isinstance(layer, QuantizeLayer | QuantizeWrapper):
            raise ValueError(
                "model must be a float model; give the one that the quantized model was made of. "
                f"Received: a model with the quantized layer {layer.name!r}"
            )
        training = training_argument(layer, args, kwargs)
        training = self._training if training is None else training
        # In inference mode even while the model trains.
        inference = training is not None and not training
        if self._kept(f"{self._path}{layer.name}") and not is_identity_at_inference(layer):
            return self._builder.in_float(layer)(*args, **kwargs)
        if isinstance(layer, tf_keras.Model):
            return self._inline(layer, args[0], training)
        if training and (is_plain_batch_norm(layer) or is_identity_at_inference(layer)):
            raise ValueError(
                f"layer {layer.name!r} ({layer_kind(layer)}) must not be called with "
                "training=True: a file infers. Build the model without it"
            )
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"layer {layer.name!r} must have data_format='channels_last'; integer kernels have "
                "no other. Received: 'channels_first'"
            )
        if isinstance(layer, TFOpLambda):
            outputs = rewrite_operator(self._builder, layer, args, kwargs)
            if outputs is not None:
                return outputs
        own = has_rule_of_the_users(layer)
        if layer_kind(layer) == "TimeDistributed" and not (own or kwargs.keys() - {"training"}):
            return self._for_each_step(layer, args[0], training)
        if is_plain_batch_norm(layer) and not own:
            # So its statistics stay in training too. In Keras its gamma and beta would still train.
            trainable = layer.trainable and not inference
            return batch_norm(self._builder, layer, args[0], trainable)
        args, kwargs = layer._call_spec.set_arg_value(
            "training",
            False if inference and layer._expects_training_arg else None,
            args,
            kwargs,
            inputs_in_args=True,
            pop_kwarg_if_none=True,
        )
        return rewrite_layer(self._builder, layer, *args, **kwargs)

    def _for_each_step(self, layer: Any, x: Any, training: bool | None) -> Any:
        """The layer inside on all steps at once, as examples of a batch."""
        visit = Canonicalizer(self._builder, training)
        if layer_kind(layer.layer) == "Dense":
            return visit(layer.layer, (x,), {})
        steps = self._builder.operate(
            "reshape_steps", f"{layer.name}_steps", x, shape=list(x.shape[2:])
        )
        y = visit(layer.layer, (steps,), {})
        return self._builder.operate(
            "reshape_steps", layer.name, y, shape=[x.shape[1], *y.shape[1:]]
        )

    def _inline(self, model: tf_keras.Model, inputs: Any, training: bool | None) -> Any:
        _require_no_mask(model)
        path = f"{self._path}{model.name}/"
        visit = Canonicalizer(self._builder, training, self._kept, path)
        # By name where they are a dict.
        outputs = replay(model, model._flatten_to_reference_inputs(inputs), visit)
        return tf.nest.pack_sequence_as(model._nested_outputs, outputs)


def _require_no_mask(model: tf_keras.Model) -> None:
    for node in nodes_in_order(model):
        masks = [getattr(tensor, "_keras_mask", None) for tensor in node.keras_inputs]
        is_masked = any(mask is not None for mask in (*masks, node.call_kwargs.get("mask")))
        if is_masked and layer_kind(node.layer) == "GlobalAveragePooling1D":
            raise ValueError(
                f"layer {node.layer.name!r} (GlobalAveragePooling1D) must not be called with a "
                "mask; an integer file has none. Build the model without Masking and mask_zero=True"
            )


OPERATORS = {**ARITHMETIC_OPERATORS, **MOVING_OPERATORS, **REDUCING_OPERATORS}
"""Kind of the operator -> its rule; a rule returns None where it does not apply."""


def rewrite_operator(
    builder: GraphBuilder,
    layer: tf_keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Returns what a `TFOpLambda` computes as layers that quantization knows, or None.

    Args:
        builder: makes the new layers.
        layer: Keras's layer around one TensorFlow function.
        args: of the call, symbolic tensors among them.
        kwargs: likewise.
    """
    rule = OPERATORS.get(operator_kind(layer))
    if rule is None:
        return None
    arguments = dict(operator_of(layer, args, kwargs).arguments)
    # The first has a name of its own in almost every function.
    x = arguments.pop(next(iter(arguments)))
    try:
        inspect.signature(rule).bind(builder, layer.name, x, **arguments)
    except TypeError:
        return None  # An option that the rule does not know.
    return rule(builder, layer.name, x, **arguments)
