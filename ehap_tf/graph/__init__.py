"""Graphs of Keras: their calls in order, replayed on other values, and copies of their layers."""

from ehap_tf.graph.calls import (
    in_training,
    is_nested_model,
    is_time_distributed,
    layer_calls,
    layer_paths,
    model_inside,
    nodes_as_computed,
    nodes_in_order,
    training_argument,
)
from ehap_tf.graph.copying import (
    Copier,
    ZeroInitializers,
    copy_trainable,
    kept_random_state,
    layer_from,
    with_policy,
)
from ehap_tf.graph.operators import (
    operator_symbol,
)
from ehap_tf.graph.replay import (
    arguments,
    model_like,
    propagate,
    propagate_calls,
    replay,
)
from ehap_tf.graph.tensors import (
    consumers,
    input_layer_names,
    is_symbolic,
    layer_of,
    made_by,
    producers,
)

__all__ = [
    "Copier",
    "ZeroInitializers",
    "arguments",
    "consumers",
    "copy_trainable",
    "in_training",
    "input_layer_names",
    "is_nested_model",
    "is_symbolic",
    "is_time_distributed",
    "kept_random_state",
    "layer_calls",
    "layer_from",
    "layer_of",
    "layer_paths",
    "made_by",
    "model_inside",
    "model_like",
    "nodes_as_computed",
    "nodes_in_order",
    "operator_symbol",
    "producers",
    "propagate",
    "propagate_calls",
    "replay",
    "training_argument",
    "with_policy",
]
