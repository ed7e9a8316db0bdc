"""Loss derivatives with respect to gates: one factor alpha = 1 on each filter's channel.

Removing filter c is alpha_c -> 0, which changes the loss by about -g_c + h_c / 2, with g and h the
first and second derivative. Both need gradients of activations only, none of weights.

Every example gets gates of its own, so that the sketch squares per example: products of different
examples, pure noise, never enter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ehap_tf.sensitivity.estimators.gauss_newton import Vectors
from ehap_tf.sensitivity.estimators.hutchinson import Step
from ehap_tf.sensitivity.estimators.output_curvature import factor_times
from ehap_tf.sensitivity.gates.gate_placement import Gate, find_gates
from ehap_tf.sensitivity.gates.group_gates import find_groups, grouped_forward
from ehap_tf.sensitivity.network.forward import mixes_examples
from ehap_tf.sensitivity.network.network import Network

GatedForward = Callable[[Any, tf.Tensor], tf.Tensor]
"""`(inputs, alpha)` -> outputs; alpha has shape (batch, filters of all layers) or (1, filters)."""

REMOVAL_ROWS = 256
"""Examples times filters in one forward pass of the oracle, where the micro-batch is smaller."""


def gated_forward(network: Network) -> GatedForward:
    """The network with a gate on every filter, where its removal acts.

    In tied mode a gate is one of a group (see `ehap_tf.sensitivity.gates.group_gates`).

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    if network.residual == "tied":
        return grouped_forward(network)
    columns = gate_columns(network, lambda gate: gate.nodes)

    def forward(inputs: Any, alpha: tf.Tensor) -> tf.Tensor:
        def gate(node: Any, outputs: Any) -> Any:
            if id(node) not in columns:
                return outputs
            return outputs * channel_factors(alpha[:, columns[id(node)]], outputs)

        return network.forward(inputs, gate)

    return forward


def gate_columns(network: Network, places: Callable[[Gate], tuple[int, ...]]) -> dict[int, slice]:
    """`id()` of a node behind which a gate stands -> its part of all filters, in their order.

    Args:
        network: with the filters.
        places: where a filter's gate is to stand.

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    gates = find_gates(network.model)
    columns: dict[int, slice] = {}
    start = 0
    for layer in network.layers:
        if layer.name not in gates:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.layer).__name__}) has no gate: its channels "
                "cannot be followed; use a criterion on weights, such as 'hessian_trace'"
            )
        part = slice(start, start + layer.filters)
        columns.update(dict.fromkeys(places(gates[layer.name]), part))
        start += layer.filters
    return columns


def channel_factors(alpha: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Gates of shape (batch or 1, channels), shaped to be multiplied with a layer's outputs."""
    factors = tf.cast(alpha, outputs.dtype)
    ones = [1] * (outputs.shape.rank - 2)
    return tf.reshape(factors, tf.concat([tf.shape(factors)[:1], ones, tf.shape(factors)[1:]], 0))


def gate_count(network: Network) -> int:
    """How many gates the network has: one per filter, in tied mode one per group of filters."""
    if network.residual == "tied":
        return find_groups(network).count
    return sum(layer.filters for layer in network.layers)


def _ones(count: int, weights: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.ones([tf.shape(weights)[0], count], dtype)


def gate_gradient_step(network: Network) -> Step:
    """Builds the function that computes g, the gradient of the loss on the gates.

    Returns:
        A step as `hutchinson_step` gives, with one row whatever the probes are.
    """
    forward, count_of_gates = gated_forward(network), gate_count(network)

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first, probes
        alpha = _ones(count_of_gates, weights, network.dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(alpha)
            loss = tf.reduce_sum(network.loss_values(labels, forward(inputs, alpha), weights))
            loss = loss * scales[0]
        gradient = tape.gradient(loss, alpha, unconnected_gradients="zero")
        gradient = tf.reduce_sum(gradient, axis=0, keepdims=True)
        return gradient / scales[0], tf.reduce_all(tf.math.is_finite(gradient))

    return step


def gate_curvature_step(network: Network, vectors: Vectors) -> Step:
    """Builds the function that sketches h, the Gauss-Newton curvature of the loss on the gates.

    Returns:
        A step as `gauss_newton_step` gives, with values of shape (probes, filters).
    """
    return gate_sketch_step(
        network,
        gated_forward(network),
        gate_count(network),
        vectors,
        lambda u: tf.reduce_sum(tf.square(u), axis=0),
    )


def gate_sketch_step(
    network: Network,
    forward: GatedForward,
    gates: int,
    vectors: Vectors,
    collect: Callable[[tf.Tensor], tf.Tensor],
) -> Step:
    """Builds the function that sketches the Gauss-Newton matrix on the gates.

    Args:
        network: what to differentiate.
        forward: the network with gates.
        gates: how many.
        vectors: what the factor of the loss's curvature is multiplied with.
        collect: what to keep of a probe's rows u, shape (examples, gates).

    Returns:
        A step as `gauss_newton_step` gives, with values of shape (probes, ...): what is kept.
    """

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        alpha = _ones(gates, weights, network.dtype)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(alpha)
            outputs = forward(inputs, alpha)

        def one_probe(index: tf.Tensor, values: tf.TensorArray) -> Any:
            v = vectors(probes[index], first, tf.shape(outputs), outputs.dtype)
            cotangent = factor_times(network, labels, outputs, weights, v) * scales[1]
            u = tape.gradient(
                outputs, alpha, output_gradients=cotangent, unconnected_gradients="zero"
            )
            return index + 1, values.write(index, collect(u / scales[1]))

        count = tf.shape(probes)[0]
        _, values = tf.while_loop(
            lambda index, _: index < count,
            one_probe,
            (tf.constant(0), tf.TensorArray(network.dtype, count)),
            parallel_iterations=1,
        )
        return values.stack(), tf.reduce_all(tf.math.is_finite(outputs))

    return step


def removal_loss_step(network: Network) -> Step:
    """Builds the function that computes the loss without filter number `probe`, for many of them.

    A number past the last filter gives the loss of the whole network. Small micro-batches are
    computed for several filters at once, up to `REMOVAL_ROWS` rows a forward pass, unless the
    statistics of some BatchNorm are those of the rows.

    Returns:
        A step with values of shape (probes, 1).
    """
    forward, filters = gated_forward(network), gate_count(network)
    rows = 1 if mixes_examples(network.model) else REMOVAL_ROWS

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first, scales
        examples, count = tf.shape(weights)[0], tf.shape(probes)[0]
        together = tf.minimum(count, tf.maximum(1, rows // examples))
        groups = -(-count // together)
        # Filled up with the last number, so that every group has one shape.
        places = tf.minimum(tf.range(groups * together), count - 1)
        numbers = tf.reshape(tf.gather(probes, places), [groups, together])

        def repeated(tensor: Any) -> tf.Tensor:
            tensor = tf.convert_to_tensor(tensor)
            return tf.tile(tensor, tf.concat([[together], tf.ones_like(tf.shape(tensor)[1:])], 0))

        all_inputs = tf.nest.map_structure(repeated, inputs)
        all_labels = tf.nest.map_structure(repeated, labels)
        all_weights = repeated(weights)

        def one_group(index: tf.Tensor, values: tf.TensorArray) -> Any:
            alpha = 1 - tf.one_hot(numbers[index], filters, dtype=network.dtype)
            outputs = forward(all_inputs, tf.repeat(alpha, examples, axis=0))
            losses = network.loss_values(all_labels, outputs, all_weights)
            losses = tf.reduce_sum(tf.reshape(losses, [together, examples]), axis=1)
            return index + 1, values.write(index, losses)

        _, values = tf.while_loop(
            lambda index, _: index < groups,
            one_group,
            (tf.constant(0), tf.TensorArray(network.dtype, groups)),
            parallel_iterations=1,
        )
        return tf.reshape(values.stack(), [-1, 1])[:count], tf.constant(True)

    return step
