"""First-order sensitivity of the loss to a filter's weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ehap_tf.sensitivity.estimators.hutchinson import Step
from ehap_tf.sensitivity.network.filters import filter_sums
from ehap_tf.sensitivity.network.network import Network


def weight_gradient_step(network: Network) -> Step:
    """Builds the function that computes sum(gradient * weight) by filter, the loss's on weights.

    Returns:
        A step as `hutchinson_step` gives, with one row whatever the probes are.
    """
    kernels, dtype = network.kernels, network.dtype

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first, probes
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            loss = tf.reduce_sum(network.loss_values(labels, network.forward(inputs), weights))
            loss = loss * scales[0]
        gradients = tape.gradient(loss, kernels, unconnected_gradients="zero")
        products = [
            tf.cast(g, dtype) / scales[0] * tf.cast(k, dtype)
            for g, k in zip(gradients, kernels, strict=True)
        ]
        value = filter_sums(products, network.layers)[tf.newaxis]
        return value, tf.reduce_all(tf.math.is_finite(value))

    return step
