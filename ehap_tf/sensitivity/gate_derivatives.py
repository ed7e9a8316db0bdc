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

from ehap_tf.sensitivity.gates import find_gates
from ehap_tf.sensitivity.gauss_newton import Vectors
from ehap_tf.sensitivity.hutchinson import Step
from ehap_tf.sensitivity.network import Network
from ehap_tf.sensitivity.output_curvature import factor_times

GatedForward = Callable[[Any, tf.Tensor], tf.Tensor]
"""`(inputs, alpha)` -> outputs; alpha has shape (batch, filters of all layers) or (1, filters)."""


def gated_forward(network: Network) -> GatedForward:
    """The network with a gate on every filter, where its removal acts.

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    gates = find_gates(network.model)
    columns: dict[str, slice] = {}
    start = 0
    for layer in network.layers:
        if layer.name not in gates:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.layer).__name__}) has no gate: its channels "
                "cannot be followed; use a criterion on weights, such as 'hessian_trace'"
            )
        columns[gates[layer.name].after] = slice(start, start + layer.filters)
        start += layer.filters

    def forward(inputs: Any, alpha: tf.Tensor) -> tf.Tensor:
        def gate(name: str, outputs: Any) -> Any:
            if name not in columns:
                return outputs
            factors = tf.cast(alpha[:, columns[name]], outputs.dtype)
            ones = [1] * (outputs.shape.rank - 2)
            shape = tf.concat([tf.shape(factors)[:1], ones, tf.shape(factors)[1:]], 0)
            return outputs * tf.reshape(factors, shape)

        return network.forward(inputs, gate)

    return forward


def _ones(network: Network, weights: tf.Tensor) -> tf.Tensor:
    filters = sum(layer.filters for layer in network.layers)
    return tf.ones([tf.shape(weights)[0], filters], network.dtype)


def gate_gradient_step(network: Network) -> Step:
    """Builds the function that computes g, the gradient of the loss on the gates.

    Returns:
        A step as `hutchinson_step` gives, with one row whatever the probes are.
    """
    forward = gated_forward(network)

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first, probes
        alpha = _ones(network, weights)
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
    forward = gated_forward(network)

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        alpha = _ones(network, weights)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(alpha)
            outputs = forward(inputs, alpha)

        def one_probe(index: tf.Tensor, values: tf.TensorArray) -> Any:
            v = vectors(probes[index], first, tf.shape(outputs), outputs.dtype)
            cotangent = factor_times(network, labels, outputs, weights, v) * scales[1]
            u = tape.gradient(
                outputs, alpha, output_gradients=cotangent, unconnected_gradients="zero"
            )
            return index + 1, values.write(index, tf.reduce_sum(tf.square(u / scales[1]), axis=0))

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

    A number past the last filter gives the loss of the whole network.

    Returns:
        A step with values of shape (probes, 1).
    """
    forward = gated_forward(network)
    filters = sum(layer.filters for layer in network.layers)

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first, scales

        def one_filter(index: tf.Tensor, values: tf.TensorArray) -> Any:
            alpha = 1 - tf.one_hot(probes[index], filters, dtype=network.dtype)
            outputs = forward(inputs, alpha[tf.newaxis])
            loss = tf.reduce_sum(network.loss_values(labels, outputs, weights))
            return index + 1, values.write(index, loss[tf.newaxis])

        count = tf.shape(probes)[0]
        _, values = tf.while_loop(
            lambda index, _: index < count,
            one_filter,
            (tf.constant(0), tf.TensorArray(network.dtype, count)),
            parallel_iterations=1,
        )
        return values.stack(), tf.constant(True)

    return step
